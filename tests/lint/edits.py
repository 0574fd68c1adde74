"""The base cases with edits."""

from __future__ import annotations

from steps.lint.examples import Example


def parallel(*edits: tuple[str, str]) -> Example:
    """The two-node data-parallel case with edits."""
    return Example("parallel", edits)


def split(*edits: tuple[str, str]) -> Example:
    """The prefill/decode case with edits."""
    return Example("split", edits)


def routing(*edits: tuple[str, str]) -> Example:
    """The external data-parallel case with edits."""
    return Example("routing", edits)
