"""Benchmarks: ratios taken in one run, with the hardware named."""
