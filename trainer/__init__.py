"""The worker behind the feature store: consume the stream, archive, refit, gate, publish.

One trainer leads, others wait. Whatever step it is killed at, the live generation stays whole and each
acknowledged rating reaches the archive once.
"""
