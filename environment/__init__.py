"""The rating environment of the lecture: its worlds, its contract over HTTP, and what a player sees of it.

Nothing of the recommender is imported here, so a player in any language stands where ours stand.
"""
