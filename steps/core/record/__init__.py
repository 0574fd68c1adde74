"""What is left of a run: directory, events, records, verdict."""
