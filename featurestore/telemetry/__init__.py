"""What the processes of a deployment tell of themselves."""
