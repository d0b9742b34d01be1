"""Requests: written, sent at a rate or as fast as they are answered; and what the service counts."""
