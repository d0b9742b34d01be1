"""The worker behind the feature store: consume -> archive -> snapshot -> fit -> judge -> publish -> switch.

One trainer leads, others wait. Killed at any step, it leaves the live generation whole, and each
acknowledged rating reaches the archive once. Begin at `term.py`, which has the stages and the queues between
them.
"""
