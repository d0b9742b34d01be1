"""Clusters that Foldin forms itself: on a laptop, of containers, and under test."""
