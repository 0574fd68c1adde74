"""The rules by theme. Importing this package registers all of them."""

from steps.lint.rules import core, flags

__all__ = ["core", "flags"]
