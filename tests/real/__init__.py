"""Real vLLM, real KV transfer, the real router and AISBench, on a CPU.

Enters: the built environments and models (``python -m tests.real`` builds them). Leaves: passed
tests, and the figures of their runs. Touches: the cache, loopback, temporary directories.

A plain ``pytest`` passes them over: they take a quarter of an hour.
"""
