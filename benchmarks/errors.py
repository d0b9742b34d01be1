"""What keeps a benchmark from running."""


class BenchmarkError(RuntimeError):
    """The benchmark cannot run here; the message says what to do."""
