"""Whether a trainer is alive, and its metrics, over HTTP."""
