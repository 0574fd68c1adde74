"""Rehearsals of the benchmarks: started as a user starts them, with how long each took."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Ran:
    """A rehearsal that is over; ``seconds`` from the start of its command to its end."""

    code: int
    seconds: float
    path: Path

    @property
    def verdict(self) -> dict[str, Any]:
        """``verdict.json``."""
        found: dict[str, Any] = json.loads((self.path / "verdict.json").read_text())
        return found

    def events(self, what: str = "") -> list[dict[str, Any]]:
        """Events of all nodes and of the runner, all or of one kind."""
        text = (self.path / "events.jsonl").read_text()
        rows = [json.loads(line) for line in text.split("\n") if line]
        return [row for row in rows if not what or row["what"] == what]


def rehearse(case: str, path: Path, *options: str) -> Ran:
    """Run a rehearsal to its end."""
    argv = [sys.executable, "-m", "ci.run", case, "--run-dir", str(path), "--rehearse", *options]
    return timed(argv, path)


def timed(argv: list[str], path: Path) -> Ran:
    """Run a command to its end; what it says is not shown."""
    began = time.monotonic()
    done = subprocess.run(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=600
    )
    return Ran(done.returncode, time.monotonic() - began, path)
