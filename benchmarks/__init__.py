"""Benchmarks: `unroll` against Flax, PyTorch and Keras, in time and in memory; ``make bench``."""
