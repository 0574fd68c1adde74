"""Whole runs that are not rehearsed: the real path, on the engine of ``tests/engine``."""
