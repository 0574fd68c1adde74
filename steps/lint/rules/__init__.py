"""The rules by theme. Importing this package registers all of them."""

from steps.lint.rules import (
    benchmarks,
    core,
    data_parallel,
    devices,
    flags,
    json_values,
    matrix,
    model,
    prefill_decode,
    variables,
)

__all__ = [
    "benchmarks",
    "core",
    "data_parallel",
    "devices",
    "flags",
    "json_values",
    "matrix",
    "model",
    "prefill_decode",
    "variables",
]
