"""How fast commands start: ``invoke --list`` and the --help of the main ones.

    python benchmarks/cli_speed.py --rounds 10

Prints the median and the best of the wall time in seconds, and the median CPU
time, which another load on the machine disturbs less. Target: ``invoke
--list`` at most 0.35 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "invoke --list": ["-m", "invoke", "--list"],
    "ci.run --help": ["-m", "ci.run", "--help"],
    "steps.node --help": ["-m", "steps.node", "--help"],
    "steps.validate --help": ["-m", "steps.validate", "--help"],
    "steps.resolve --help": ["-m", "steps.resolve", "--help"],
}


def measure(argv: list[str], rounds: int) -> dict[str, float]:
    """Seconds of one command; the first, which may write byte code, does not count."""
    walls, cpus = [], []
    for _ in range(rounds + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *argv], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "median": round(statistics.median(walls[1:]), 3),
        "best": round(min(walls[1:]), 3),
        "cpu_median": round(statistics.median(cpus[1:]), 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    for name, argv in COMMANDS.items():
        print(json.dumps({"command": name, **measure(argv, arguments.rounds)}), flush=True)


if __name__ == "__main__":
    main()
