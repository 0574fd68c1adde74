"""Figures of runs over SSH: how soon all node programs run, how soon a cut-off host ends a run.

Usage: python benchmarks/hosts_start.py [HOSTS] [RUNS] (default 8 hosts, 5 runs). Needs root, sshd,
iproute2: every host is an sshd of its own, its disk a tmpfs, on loopback (start) or in a
network namespace (cut). Ends what it starts.
Prints one JSON object. ``start``: for each run, seconds from the command to the last node program
that runs, to the last that has said its first event (its imports are done), the slowest SSH
handshake of it, and what is beyond the handshake. ``cut``: for each run, seconds
from the pulled cable to the first node that names the lost one, to the last reachable node's end,
to the runner's own cause (then it fetches, cleans and reports), and to the end of the command.
``left``: what was found on the hosts afterwards. ``load`` is the
machine's load average, since all hosts share its cores.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from steps.core.record.events import read_events  # noqa: E402
from tests.hosts import lan as lans  # noqa: E402
from tests.hosts.cases import spread  # noqa: E402
from tests.hosts.rig import Rig, Run, why_not  # noqa: E402


def started_of(run: Run) -> dict[int, float]:
    """When each node program was started, by the clock of all."""
    found = {}
    for event in read_events(run.dir / "events.jsonl"):
        if event.what == "node-started":
            found[int(event.fields["member"])] = event.time
    return found


def first_events(run: Run) -> dict[int, float]:
    """When each node said its first event."""
    found: dict[int, float] = {}
    for event in read_events(run.dir / "events.jsonl"):
        if event.node >= 0:
            found.setdefault(event.node, event.time)
    return found


def handshake_of(run: Run) -> float:
    """The slowest SSH handshake of a run, in seconds."""
    events = read_events(run.dir / "events.jsonl")
    return float(next(e.fields["handshake"] for e in events if "handshake" in e.fields))


def start(rig: Rig, case: Path) -> dict[str, Any]:
    """One run to its pass."""
    began = time.time()
    run = rig.run(case)
    code = run.end()
    first, running = first_events(run), started_of(run)
    handshake = handshake_of(run)
    spent = max(running.values()) - began
    return {
        "code": code,
        "nodes": len(running),
        "running": round(spent, 2),
        "first_event": round(max(first.values()) - began, 2),
        "handshake": round(handshake, 2),
        "beyond_handshake": round(spent - handshake, 2),
        "whole": round(time.time() - began, 2),
        "left": rig.left(),
        "load": os.getloadavg()[0],
    }


def cut(rig: Rig, lan: lans.Lan, case: Path, lost: int) -> dict[str, Any]:
    """One run in which a cable is pulled while the engines load."""
    run = rig.run(case, "--load-seconds", "60", hosts=rig.hosts_file({"lease": 5}))
    run.until("load ...")
    time.sleep(1.5)
    pulled = time.time()
    lan.machines[lost].cut()
    code = run.end()
    ended = time.time()
    events = read_events(run.dir / "events.jsonl")
    told = [e.time for e in events if e.what == "cause" and e.node != lost and e.time > pulled]
    last = [e.time for e in events if e.node not in (lost, -1)]
    lan.machines[lost].mend()
    deadline = time.monotonic() + 30
    while rig.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = rig.processes()
    rig.wipe()
    return {
        "lost": lost,
        "code": code,
        "cause_node": run.verdict["cause"]["node"],
        "named": round(min(told) - pulled, 2),
        "nodes_ended": round(max(last) - pulled, 2),
        "runner_ended": round(
            min(e.time for e in events if e.what == "cause" and e.node == -1) - pulled, 2
        ),
        "command_ended": round(ended - pulled, 2),
        "processes_left": len(processes),
        "load": os.getloadavg()[0],
    }


def main() -> int:
    """Measure and print."""
    count, runs = (int(word) for word in (*sys.argv[1:3], *("8", "5")[len(sys.argv) - 1 :]))
    reason = why_not() or lans.why_not()
    if reason:
        print(f"not measured: {reason}")
        return 3
    with tempfile.TemporaryDirectory(prefix="hosts-bench-") as name:
        root = Path(name)
        rig = Rig(root / "start", count)
        try:
            starts = [start(rig, spread(root / "case.yaml", count)) for _ in range(runs)]
        finally:
            rig.close()
        lan = lans.Lan(3)
        places = [(machine.address, machine.wrap) for machine in lan.machines]
        rig = Rig(root / "cut", places=places)
        try:
            case = spread(root / "case3.yaml", 3)
            cuts = [cut(rig, lan, case, lost) for lost in (2, 0) * max(1, runs // 2)]
        finally:
            rig.close()
            lan.close()
    text = json.dumps({"hosts": count, "start": starts, "cut": cuts}, indent=1)
    print(re.sub(r"\n {3,}", " ", text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
