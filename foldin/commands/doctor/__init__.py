"""`foldin doctor`: looks, and says what to do."""
