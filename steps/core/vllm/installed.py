"""vLLM as it is installed: which versions matter, and where machines differ.

Enters: facts of machines. Leaves: what of them is not alike. Touches: nothing itself;
``machine`` looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from steps.core.system import machine
from steps.core.system.machine import Facts

PROGRAM = "vllm"
PACKAGES = ("vllm", "vllm-ascend", "torch", "torch-npu", "transformers", "mooncake-transfer-engine")
#: Facts that should be the same on all machines of a fleet.
ALIKE = (*machine.ALIKE, *PACKAGES)


def differences(found: Mapping[str, Facts]) -> dict[str, dict[str, list[str]]]:
    """Facts that are not alike: fact -> value -> who has it, the most common value first."""
    unlike = {}
    for name in ALIKE:
        values: dict[str, list[str]] = {}
        for who, told in found.items():
            values.setdefault(str(told.get(name, "")), []).append(who)
        if len(values) > 1:
            unlike[name] = dict(sorted(values.items(), key=lambda item: -len(item[1])))
    return unlike


def sentences(found: Mapping[str, Facts]) -> Iterator[str]:
    """A sentence for each fact that differs."""
    for name, values in differences(found).items():
        each = "; ".join(f"{value or 'none'} on {', '.join(who)}" for value, who in values.items())
        yield f"{name} differs: {each}"
