"""Child processes: started, watched, restarted, stopped. Standard library only."""
