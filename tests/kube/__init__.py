"""Kubernetes: the API double, the condensed recordings, and the tests that hold them together."""
