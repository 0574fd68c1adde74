"""What a row of steps costs over one program: the quickstart both ways, in turns.

    python benchmarks/chain.py [ROUNDS]

The limit is 0.25 s a step. ``invoke`` itself, which the whole run does without, is counted too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("serve", "--detach", "wait", "bench", "prove", "collect", "stop", "report")
COUNT = len([word for word in STEPS if not word.startswith("-")]) + 1
LIMIT = 0.25
CASE = "quickstart.yaml"


def seconds(argv: list[str]) -> float:
    """How long a command took, which must pass."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - began


def main() -> int:
    """Measure, and say whether the limit holds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rows, wholes = [], []
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds):
            words = ["plan", "--case", CASE, "--run-dir", f"{place}/row-{number}", *STEPS]
            rows.append(seconds(["invoke", *words]))
            wholes.append(seconds(["ci.run", CASE, "--run-dir", f"{place}/whole-{number}"]))
    row, whole = statistics.median(rows), statistics.median(wholes)
    cost = (row - whole) / COUNT
    print(f"whole run {whole:.2f} s, row of {COUNT} steps {row:.2f} s: {cost:+.3f} s a step")
    print(f"at most {LIMIT} s a step: {'yes' if cost <= LIMIT else 'NO'}")
    return int(cost > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
