# ruff: noqa: N818 - the names say what happened
"""What keeps a migration from its end, split by what a person does about it."""


class MigrationRefused(Exception):
    """It cannot be done as things are: nothing was changed. The message says what to do."""


class MigrationStopped(Exception):
    """It was broken off, and the source takes ratings as before. Run it again."""
