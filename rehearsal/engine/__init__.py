"""The stand-in engine: command line, API, data-parallel group, metrics."""
