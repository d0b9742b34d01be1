"""What the benchmarks share: their command line, the parts of a deployment, the machine watched, reports."""
