"""The course's protocol: players alone in the same worlds of the rating environment, over its HTTP API."""
