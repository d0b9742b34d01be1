"""The first stage: rating events from the streams into the archive."""
