"""The rating environment of the lecture, the players that face it, and their evaluation.

Knows the service by its HTTP API only: nothing of `factors`, `featurestore`, `service` or `trainer` is
imported here, so a player in any language stands where these stand.
"""
