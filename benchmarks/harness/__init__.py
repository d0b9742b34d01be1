"""What the benchmarks share: processes, load, synthetic data, reports. Each module above this folder is a
benchmark."""
