"""The rules by theme. Importing this package registers all of them."""

from steps.lint.rules import core, data_parallel, devices, flags, prefill_decode

__all__ = ["core", "data_parallel", "devices", "flags", "prefill_decode"]
