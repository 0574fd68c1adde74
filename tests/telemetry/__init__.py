"""Telemetry: looked at, kept, made sense of."""
