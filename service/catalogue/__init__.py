"""What a worker holds of the catalogue, and how what is sent becomes items."""
