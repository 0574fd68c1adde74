"""``npu-smi info``: one device, idle unless ``TEST_NPU`` names what holds it, or says an error."""

from __future__ import annotations

import os
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """The command line."""
    holder = os.environ.get("TEST_NPU", "")
    if holder == "error":
        print("dcmi model initialized failed, because the device is used. ret is -8020")
        return 1
    print("| npu-smi 25.2.0                   Version: 25.2.0                    |")
    print("| 0     910B3               | OK            | 93.4        40                |")
    if holder:
        print(f"| 0       0                 | 4711          | {holder:<24} | 100 |")
    return 0
