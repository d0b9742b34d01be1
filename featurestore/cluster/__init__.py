"""A store on a Redis or Valkey Cluster, in place of one server. Invariant: what talks to the store notices no
difference but an address with the scheme `redis+cluster`.
"""
