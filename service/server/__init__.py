"""Processes and sockets of the service: supervisor, workers, the fast path of GET /predict."""
