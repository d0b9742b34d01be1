"""Chooses how a ranking head is fitted, by lists of events held out."""
