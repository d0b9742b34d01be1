"""`foldin torture`: a whole stack under faults, and an auditor of all that it says meanwhile."""
