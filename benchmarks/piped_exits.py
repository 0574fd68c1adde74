"""How often an exit code is right when nobody reads what a command prints.

    python benchmarks/piped_exits.py [--only WORDS]

Fifty commands, each with a reader that goes away, a closed stream or a full
device. Prints one JSON line for each wrong code, then how many were right.
Target: 50 of 50.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CRASH = "--rehearse --load-seconds 0.5 --fault crash@1:ready"
READERS = ("| true", "| head -1", "| grep -q joined")
CLOSED = (">&-", "2>&-", ">&- 2>&-", "0<&- >&- 2>&-")
FULL = (">/dev/full", ">/dev/full 2>&1")
#: Command, its exit code, and what becomes of its output. FAILED is a run with a crash, PASSED
#: one that passed, NEW a directory for another, BAD a case with a mistake.
VARIANTS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    (f"-m ci.run quickstart.yaml {CRASH} --run-dir NEW", 1, (*READERS, *CLOSED, *FULL)),
    ("-m ci.run quickstart.yaml --rehearse --run-dir NEW", 0, ("| grep -q joined", ">&-", FULL[0])),
    ("-m ci.replay FAILED --run-dir NEW", 1, ("| true", "| head -1", ">/dev/full")),
    ("-m ci.run BAD --rehearse --run-dir NEW", 2, ("2>&1 | true", ">&- 2>&-", FULL[1])),
    ("-m steps.report --run-dir FAILED", 1, (*READERS, ">&-", *FULL)),
    ("-m steps.report --run-dir FAILED --format json", 1, ("| true", ">&-", ">/dev/full")),
    ("-m steps.report --run-dir PASSED", 0, ("| true", ">&-", ">/dev/full")),
    ("-m steps.validate BAD", 2, ("| true", ">&-", *FULL)),
    ("-m steps.validate --format sarif", 0, ("| head -1", ">&-", ">/dev/full")),
    ("-m steps.fix --dry-run BAD", 2, ("2>&1 | true", "2>&-")),
    ("-m steps.resolve --case quickstart.yaml", 0, ("| true", ">/dev/full")),
    ("-m ci.nightly.trend quickstart.yaml --store PASSED", 2, ("2>&1 | true",)),
    ("-m ci.doctor", 0, (">&-",)),
    ("-m ci.nightly.matrix", 0, (">/dev/full",)),
    ("-m ci.run --help", 0, (">/dev/full",)),
    ("-m invoke report --run-dir FAILED", 1, ("| true", ">&-", ">/dev/full")),
    ("-m invoke nonsense", 2, ("2>&1 | true", "2>&-")),
)


def variants() -> Iterator[tuple[str, int]]:
    """(Command line, exit code) of each."""
    for command, code, endings in VARIANTS:
        for ending in endings:
            yield f"{command} {ending}", code


def code_of(line: str, place: Path) -> int:
    """The exit code of one command line; ``place`` holds what it needs."""
    new = tempfile.mkdtemp(dir=place, prefix="new-")
    for word, path in (("FAILED", place / "failed"), ("PASSED", place / "passed"),
                       ("NEW", new), ("BAD", place / "bad.yaml")):  # fmt: skip
        line = line.replace(word, str(path))
    shell = f"{sys.executable} {line}\nexit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", shell],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "GITHUB_ACTIONS"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        check=False,
    ).returncode


def prepare(place: Path) -> None:
    """A run that failed, one that passed, and a case with a mistake."""
    (place / "bad.yaml").write_text("test_name: 1\n", encoding="utf-8")
    run = "-m ci.run quickstart.yaml --rehearse --load-seconds 0.5"
    if code_of(f"{run} --run-dir FAILED --fault crash@1:ready", place) != 1:
        raise SystemExit("the run with a crash did not fail")
    if code_of(f"{run} --run-dir PASSED", place) != 0:
        raise SystemExit("the run without a fault did not pass")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="WORDS", help="variants with these words")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        chosen = [(line, code) for line, code in variants() if only in line]
        right = 0
        for line, expected in chosen:
            code = code_of(line, Path(scratch))
            right += code == expected
            if code != expected:
                wrong = {"command": line, "code": code, "expected": expected}
                print(json.dumps(wrong), flush=True)
    print(json.dumps({"right": right, "of": len(chosen)}))
    return 0 if right == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
