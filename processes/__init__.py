"""Child processes: started, watched, restarted, stopped; the standard library, and uvloop where installed."""
