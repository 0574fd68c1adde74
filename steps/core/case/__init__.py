"""The case as its author wrote it: read with positions, checked, normalised. Pure."""
