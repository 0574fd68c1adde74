"""Rehearsals of the tests: started as a user starts them, read as a reader would.

Enters: a case and options. Leaves: the exit code and the run directory's
files. Touches: one ``python -m ci.run``, a temporary directory of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.core.system.guard import marked

ROOT = Path(__file__).resolve().parents[2]
#: What Python says of a package that is not installed.
ABSENT = "raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')\n"


@dataclass(frozen=True)
class Outcome:
    """What a rehearsal left."""

    code: int
    output: str
    path: Path

    @property
    def verdict(self) -> dict[str, Any]:
        """``verdict.json``."""
        found: dict[str, Any] = json.loads((self.path / "verdict.json").read_text())
        return found

    @property
    def plan(self) -> dict[str, Any]:
        """``plan.json``."""
        found: dict[str, Any] = json.loads((self.path / "plan.json").read_text())
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """``events.jsonl``."""
        lines = (self.path / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def command(case: str, path: Path, *options: str) -> list[str]:
    """The command line of a quick rehearsal."""
    quick = ("--rehearse", "--load-seconds", "0.5")
    return [sys.executable, "-m", "ci.run", case, "--run-dir", str(path), *quick, *options]


def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a rehearsal, whose temporary files can be counted."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}


def undrawn(env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of a runner that has no matplotlib, whose import costs more than a node."""
    (tmp_path / "undrawn").mkdir(exist_ok=True)
    (tmp_path / "undrawn" / "matplotlib.py").write_text(ABSENT)
    path = [str(tmp_path / "undrawn"), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(path)}


def rehearse(
    case: str, tmp_path: Path, *options: str, seconds: float = 100, draw: bool = True
) -> Outcome:
    """Run a rehearsal to its end; the report of most need not be drawn."""
    path, env = tmp_path / "run", environment(tmp_path)
    done = subprocess.run(
        command(case, path, *options),
        cwd=ROOT,
        env=env if draw else undrawn(env, tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, path)


def left_of(outcome: Outcome, tmp_path: Path) -> list[str]:
    """Processes, ports and temporary files that the run left."""
    found = []
    for node in outcome.plan["nodes"]:
        marker = f"{outcome.path.resolve()}:{node['index']}"
        found += [f"pid {pid}" for pid in marked(marker)]
        found += [f"port {port} on {node['address']}" for port in listening(node["address"])]
    found += [str(path) for path in (tmp_path / "scratch").iterdir()]
    if (outcome.path / ".token").exists():
        found.append("the run's token")
    return found


def listening(address: str) -> list[int]:
    """Ports on which somebody listens on a loopback address."""
    wanted = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return [
        int(row[1].split(":")[1], 16)
        for row in rows
        if re.fullmatch(wanted + ":.*", row[1]) and row[3] == "0A"
    ]
