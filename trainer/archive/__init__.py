"""The archive: every rating event once, in segments on disk, and the consumer that fills it."""
