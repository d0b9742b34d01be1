"""What an evaluation found, as values: of players in the course, and of engines on files."""
