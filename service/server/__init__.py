"""Processes and sockets of the service: supervisor, workers, connections, the fast path of GET /predict."""
