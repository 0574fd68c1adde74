"""What a whole local search costs beyond its loads and benchmarks.

    python benchmarks/bisect_run.py --commits 32

The tests' own engine loads for a second and is measured for a second; from one commit on it is a
quarter slower. Target: at most 60 s that are neither, and the right commit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runs import ROOT
from tests.compare.test_bisect import product, steps
from tests.realpath import fleet

LIMIT = 60.0
#: 6 prompts of 8 tokens, two at a time: 24 of them after each other.
FAST, SLOW = "load=1 itl=0.042", "load=1 itl=0.056"


def searched(place: Path, commits: int, culprit: int) -> tuple[float, str]:
    """Seconds from the command to its end, and what it printed."""
    history = steps(commits + 1, culprit, FAST, SLOW)
    run = f'exec env TEST_ENGINE="$(cat "${{0%/*}}/../words")" {fleet.HERE}/bin/vllm "$@"\n'
    history[0]["bin/vllm"] = f"#!/bin/sh\n{run}"
    repository = product(place, history)
    case = fleet.written(place, fleet.case(1))
    argv = [sys.executable, "-m", "ci.compare.bisect", str(case), "--repository", str(repository)]
    argv += ["--good", f"main~{commits}", "--dir", str(place / "out"), "--repeats", "1"]
    argv += ["--on", "local", "--bench", "smoke"]
    began = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, env=fleet.environment(place), text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return time.monotonic() - began, done.stdout


def phases(out: Path) -> dict[str, float]:
    """Seconds of each phase of the leaders of all starts."""
    found: dict[str, float] = {}
    for path in out.glob("[0-9]*/verdict.json"):
        for phase in json.loads(path.read_text())["phases"]:
            found[phase["name"]] = found.get(phase["name"], 0.0) + phase["seconds"]
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--commits", type=int, default=32)
    commits = parser.parse_args().commits
    culprit = 2 * commits // 3
    with tempfile.TemporaryDirectory(prefix="bisect-") as place:
        seconds, text = searched(Path(place), commits, culprit)
        told = json.loads((Path(place) / "out" / "bisect.json").read_text())
        spent = phases(Path(place) / "out")
    found = [one["subject"].split(" |")[0] for one in (told["answer"] or {}).get("suspects", [])]
    over = seconds - spent.get("load", 0.0) - spent.get("bench", 0.0)
    print(text[-600:])
    print(
        f"found {found}, expected change {culprit}; {len(told['starts'])} starts, {seconds:.1f} s"
    )
    print({name: round(value, 1) for name, value in spent.items()})
    print(f"beyond loads and benchmarks: {over:.1f} s (limit {LIMIT:g} s)")
    return int(over > LIMIT or found != [f"change {culprit}"])


if __name__ == "__main__":
    sys.exit(main())
