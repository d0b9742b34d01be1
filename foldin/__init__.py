"""The front door:

the `foldin` command, the local stack with its embedded store, and the import of rating files. Nothing heavy
is imported here: the supervisor of a stack stays small for as long as the stack runs.
"""
