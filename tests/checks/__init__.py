"""Checks of content: rehearsals that fail because of each, and what is judged of answers."""
