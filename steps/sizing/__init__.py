"""Sizing: benchmarks measured at many loads, and the largest load that holds limits."""
