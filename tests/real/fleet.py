"""Runs of the harness on real engines, watched from outside.

Enters: a case. Leaves: a :class:`Fleet`, whose files and processes tests look at, and lines of
figures. Touches: starts ``python -m ci.run``, and ends it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from steps.core.system.guard import marked
from tests.conformance.client import Server

ROOT = Path(__file__).parents[2]
FIGURES: list[str] = []
SECONDS = 850.0


class Fleet:
    """One run of the harness."""

    def __init__(self, case: Path, folder: Path, *options: str) -> None:
        self.name, self.path = case.stem, folder / "run"
        self.output = folder / "output.log"
        argv = [sys.executable, "-m", "ci.run", str(case), "--run-dir", str(self.path), *options]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=out)
        self.peak = 0.0
        self._watch = threading.Thread(target=self._weigh, daemon=True)
        self._watch.start()

    def _weigh(self) -> None:
        """Keep the peak memory of all its processes, in GB; shared pages count once."""
        while self.process.poll() is None:
            total = 0
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process(self.process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self.peak = max(self.peak, total / 1e9)
            time.sleep(2)

    def wait(self) -> Fleet:
        """Until its end; nothing may be left of it."""
        self.process.wait(SECONDS)
        self._watch.join()
        assert (self.path / "verdict.json").exists(), self.tail()
        left = [pid for node in self.path.glob("node-*") for pid in marked(str(node.resolve()))]
        assert not left, f"processes are left: {left}"
        self._figures()
        return self

    def reaches(self, phase: str) -> None:
        """Wait until the leader is in a phase."""
        end = time.monotonic() + SECONDS
        while phase not in [e["phase"] for e in self.events() if e["what"] == "phase"]:
            assert self.process.poll() is None, self.tail()
            assert time.monotonic() < end, self.tail()
            time.sleep(0.1)

    def events(self) -> Iterator[dict[str, Any]]:
        """The leader's events so far."""
        path = self.path / "node-0" / "events.jsonl"
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def under_load(self) -> None:
        """Wait until an engine has requests of the benchmark, so that a fault hits them."""
        self.reaches("bench")
        nodes = json.loads((self.path / "plan.json").read_text())["nodes"]
        servers = [p for node in nodes for p in node["processes"] if p["kind"] == "server"]
        urls = [process["api"] for process in servers if process["api"]]
        end = time.monotonic() + 120
        while not any(_running(url) for url in urls):
            assert self.process.poll() is None, self.tail()
            assert time.monotonic() < end, self.tail()
            time.sleep(0.1)
        time.sleep(1)

    def pid(self, name: str, node: int = 0) -> int:
        """A process of the plan, by its name there."""
        rows = json.loads((self.path / f"node-{node}" / "processes.json").read_text())
        return next(int(row["pid"]) for row in rows if row["name"] == name and not row["exit"])

    @property
    def verdict(self) -> Any:
        """The run's verdict."""
        return json.loads((self.path / "verdict.json").read_text())

    def record(self, node: int = 0) -> Any:
        """A node's record."""
        return json.loads((self.path / f"node-{node}" / "record.json").read_text())

    def checks(self) -> dict[str, tuple[str, str]]:
        """Status and detail of each check of the leader."""
        return {c["name"]: (c["status"], c["detail"]) for c in self.record()["checks"]}

    def tail(self) -> str:
        """The end of its output."""
        return self.output.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Stop it in good order, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(120)
            self.process.kill()

    def _figures(self) -> None:
        phases = [(p["name"], p["seconds"]) for p in self.record()["phases"]]
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases)
        FIGURES.append(
            f"{self.name}: {self.verdict['verdict']}, peak {self.peak:.1f} GB; s: {told}"
        )
        for name, (status, detail) in self.checks().items():
            if name.startswith(("traffic", "handoff")):
                FIGURES.append(f"    {name} {status}: {detail}")
        for entry in self.verdict["benchmarks"]:
            wanted = ("output_throughput", "accuracy", "ttft_mean_ms", "tpot_mean_ms")
            for run in entry.get("runs") or [entry["metrics"]]:
                numbers = ", ".join(f"{key} {run[key]:g}" for key in wanted if key in run)
                FIGURES.append(f"    {entry['name']} {entry['status']}: {numbers}")


def _running(url: str) -> float:
    with contextlib.suppress(OSError):
        return Server(url).metrics().get("vllm:num_requests_running", 0.0)
    return 0.0


@contextlib.contextmanager
def running(case: Path, folder: Path, *options: str) -> Iterator[Fleet]:
    """A run, ended whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Fleet(case, folder, "--on", "local", *options)
    try:
        yield found
    finally:
        found.close()
