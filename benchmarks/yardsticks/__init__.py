"""What others would build: the servers that the service is measured beside."""
