"""`npu-smi`, stood in for: a node with REHEARSAL_DEVICES idle devices. The fault `busy@N.npu-smi`
shows somebody's process.
"""

from __future__ import annotations

import sys

from rehearsal.base.faults import Injector
from rehearsal.base.settings import Settings, read

VERSION = "25.2.0"
WIDE = f"+{'-' * 27}+{'-' * 15}+{'-' * 52}+"
THICK = WIDE.replace("-", "=")


def table(devices: int, busy: bool) -> str:
    """What `npu-smi info` prints; pure."""
    lines = [
        "+" + "-" * 96 + "+",
        f"| npu-smi {VERSION:<25}Version: {VERSION:<53}|",
        WIDE,
        "| NPU   Name                | Health        | Power(W)    Temp(C)           "
        "Hugepages-Usage(page)|",
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  "
        "HBM-Usage(MB)        |",
        THICK,
    ]
    for device in range(devices):
        used = 61440 if busy and device == 0 else 3345
        lines += [
            f"| {device:<6}{'910B3':<20}| OK            | 91.2        38                0    / 0  "
            "           |",
            f"| {0:<26}| 0000:{device + 1:02X}:00.0  | 0           0    / 0          {used:<5}/ "
            "65536         |",
            THICK,
        ]
    lines += [
        WIDE,
        "| NPU     Chip              | Process id    | Process name             | Process "
        "memory(MB)      |",
        THICK,
    ]
    for device in range(devices):
        if busy and device == 0:
            lines.append(f"| {device:<8}{0:<18}| {4242:<14}| {'python3.11':<25}| {58095:<24}|")
        else:
            lines.append(f"| {f'No running processes found in NPU {device}':<95}|")
        lines.append(THICK)
    return "\n".join(lines)


def board(device: int) -> str:
    """What `npu-smi info -t board -i N` prints; pure."""
    rows = {
        "NPU ID": device,
        "Product Name": "Atlas 800T A2",
        "Software Version": VERSION,
        "Firmware Version": "7.7.0.6.236",
        "Chip Count": 1,
    }
    return "\n".join(f"\t{name:<31}: {value}" for name, value in rows.items())


def listing(devices: int) -> str:
    """What `npu-smi info -l` prints; pure."""
    rows = [f"\t{'NPU ID':<31}: {device}\n\t{'Chip Count':<31}: 1" for device in range(devices)]
    return "\n\n".join([f"\t{'Total Count':<31}: {devices}", *rows])


def respond(arguments: list[str], settings: Settings, busy: bool) -> tuple[int, str]:
    """Exit code and text for a command line; pure."""
    devices = settings.devices or 0
    if arguments in (["-v"], ["--version"]):
        return 0, f"npu-smi version: {VERSION}"
    if arguments[:1] != ["info"]:
        return 1, "Usage: npu-smi info [-l | -m | -t board|usages|health|proc-mem -i ID]"
    rest = arguments[1:]
    if not rest:
        return 0, table(devices, busy)
    if rest in (["-l"], ["-m"]):
        return 0, listing(devices)
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    number = options.get("-i", "0")
    if (
        set(options) - {"-t", "-i", "-c"}
        or len(rest) % 2
        or not number.isdecimal()
        or int(number) >= devices
    ):
        return 1, f"Error parameter of {' '.join(rest)}"
    kind = options.get("-t", "board")
    if kind == "board":
        return 0, board(int(number))
    if kind == "health":
        return 0, f"\t{'Health':<31}: OK"
    if kind == "proc-mem":
        used = "Process id:4242 Process memory(MB):58095" if busy and number == "0" else ""
        return 0, f"\t{'NPU ID':<31}: {number}\n\t{used}".rstrip()
    if kind == "usages":
        return (
            0,
            f"\t{'NPU ID':<31}: {number}\n\t{'HBM Capacity(MB)':<31}: "
            f"65536\n\t{'HBM Usage Rate(%)':<31}: {94 if busy and number == '0' else 5}",
        )
    return 1, f"Error parameter of -t {kind}"


def main() -> int:
    """Entry of `rehearsal/bin/npu-smi`."""
    settings = read("npu-smi")
    found: set[str] = set()
    # A preflight runs npu-smi as part of whatever process it is; faults know it by its own name.
    Injector(
        settings.faults, settings.node_index, "npu-smi", lambda what, arg: found.add(what)
    ).fire("start")
    code, text = respond(sys.argv[1:], settings, "busy" in found)
    print(text)
    return code
