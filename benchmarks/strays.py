"""Nothing is left after runs whose engines leave strays of every kind.

    python benchmarks/strays.py --runs 20 --killed 5

Each server of a rehearsal starts a process of each kind of ``tests/core/strays.py``.
After each run those that live are counted, and directories for temporary files.
``--killed`` further runs lose a node program by SIGKILL; its guard must end the
same. Targets: 0 left, every clean run a pass that names what was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runs import rehearse
from tests.core.strays import alive, listed, plant


def left(roster: Path) -> Iterator[str]:
    """What lives, and what is left of temporary files."""
    for pid in alive(roster):
        yield f"pid {pid}"
    yield from map(str, (roster.parent / "t").iterdir())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--killed", type=int, default=5)
    parser.add_argument("--case", default="quickstart.yaml")
    arguments = parser.parse_args()
    found: list[str] = []
    strays = passed = named = 0
    began = time.monotonic()
    for number in range(arguments.runs + arguments.killed):
        kill = number >= arguments.runs
        with tempfile.TemporaryDirectory(
            prefix="s-", dir="/tmp", ignore_cleanup_errors=True
        ) as text:
            options = ["--fault", "kill9@1.node:bench"] if kill else []
            roster, environment = plant(Path(text))
            os.environ.update(environment)
            ran = rehearse(arguments.case, Path(text) / "run", "--load-seconds", "1.5", *options)
            found += [f"run {number}: {each}" for each in left(roster)]
            strays += len(listed(roster))
            passed += not kill and ran.code == 0
            named += any(
                "were killed: " in event.get("text", "") for event in ran.events("warning")
            )
    told = {
        "runs": arguments.runs,
        "passed": passed,
        "killed": arguments.killed,
        "strays": strays,
        "named": named,
        "left": found,
        "seconds_a_run": round((time.monotonic() - began) / (number + 1), 1),
    }
    print(json.dumps(told))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
