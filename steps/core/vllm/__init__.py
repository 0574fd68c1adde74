"""Everything known about vLLM: its command line, options and ports."""
