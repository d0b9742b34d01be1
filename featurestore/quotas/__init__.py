"""Quotas: what a caller may take, and the token buckets that all workers share."""
