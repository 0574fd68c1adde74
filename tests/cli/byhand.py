"""Rows of steps, as a user types them.

Enters: words of ``invoke``. Leaves: exit codes, what was said, a run directory. Touches: what
the steps touch, in a directory of its own; ends what a failed test has left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from steps.core.system.guard import MARKER
from tests.core.cases import ROOT
from tests.faults.rehearse import listening

INVOKE = [sys.executable, "-m", "invoke", "--search-root", str(ROOT)]


class Hand:
    """A user's terminal in a directory of its own."""

    def __init__(self, place: Path, **env: str) -> None:
        self.place = place
        (place / "scratch").mkdir(parents=True, exist_ok=True)
        quiet = {"TMPDIR": str(place / "scratch"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.env = {**os.environ, **quiet, **env}
        self.said = ""

    def __call__(self, *words: str, seconds: float = 100, crashes: bool = False) -> int:
        """One command to its end; its exit code."""
        popen = self.begin(*words)
        self.said = popen.communicate(timeout=seconds)[0]
        assert crashes or "Traceback" not in self.said, self.said
        return popen.returncode

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """One command in a terminal of its own."""
        return subprocess.Popen(
            [*INVOKE, *words],
            cwd=self.place,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def run(self) -> Path:
        """The run directory."""
        return (self.place / "runs" / "latest").resolve()

    def json(self, name: str) -> Any:
        """A file of the run directory."""
        return json.loads((self.run / name).read_text())

    def held(self, node: int, step: str = "serve") -> dict[str, Any]:
        """Who holds."""
        return self.json(f"steps/{node}-{step}.json")  # type: ignore[no-any-return]

    def server(self, node: int) -> int:
        """The process id of a node's server."""
        rows = self.json(f"node-{node}/processes.json")
        return int(next(row["pid"] for row in rows if row["name"].startswith("server")))

    def left(self) -> list[str]:
        """Processes and ports of the run, and temporary files."""
        found = [f"pid {pid}" for pid in marked(str(self.run))]
        for node in self.json("plan.json")["nodes"]:
            found += [f"port {port} of {node['address']}" for port in listening(node["address"])]
        return found + [str(path) for path in (self.place / "scratch").iterdir()]


def marked(run_dir: str) -> list[int]:
    """Processes that any step of a run directory has started."""
    needle = f"\0{MARKER}={run_dir}:".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle in b"\0" + (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def outline(verdict: dict[str, Any]) -> dict[str, Any]:
    """What of a verdict does not change from run to run; steps that may be left out, left out."""
    cause = verdict["cause"] or {}
    return {
        "verdict": verdict["verdict"],
        "exit_code": verdict["exit_code"],
        "cause": {key: cause.get(key) for key in ("kind", "verdict", "node", "process")},
        "benchmarks": [(b["name"], b["status"]) for b in verdict["benchmarks"]],
        "checks": sorted(
            (c["name"], c["status"]) for c in verdict["checks"] if not c["name"].startswith("step ")
        ),
        "missing": verdict["missing_records"],
    }
