"""Clusters that Foldin forms itself: of containers, and under test."""
