"""Hostile case files: written by hand, and made by mutation; and limits they are held to."""
