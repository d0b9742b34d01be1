"""How a deployment is, its settings and keys, and the pages that show it."""
