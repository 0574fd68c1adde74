"""Tool environments, models and data sets, the reference page."""
