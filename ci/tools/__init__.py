"""Tool environments and their cache, plots, the reference page."""
