"""status: which steps of a run go on, since when, on which ports, and what died.

Enters: a run directory. Leaves: lines for people, or JSON. Touches: writes the death of a step
that died without a word into its node's record. Exit code 3 when one has died.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steps.core import door, foreign
from steps.core.case.numbers import dumps
from steps.core.errors import Exit
from steps.core.node.alone import holding
from steps.core.node.alone.holding import Hold
from steps.core.plan.plan import Plan
from steps.core.record import evidence, outcome
from steps.core.record.rundir import RunDir


def run(run_dir: RunDir) -> list[dict[str, Any]]:
    """Each step that was begun there, with its ports and the last lines of its logs."""
    plan = outcome.plan_of(run_dir)
    holding.settle(run_dir)
    return [_told(plan, run_dir, hold) for hold in holding.look(run_dir) if hold.pid]


def _told(plan: Plan, run_dir: RunDir, hold: Hold) -> dict[str, Any]:
    ports = [
        f"{port.port}{f'-{port.port + port.count - 1}' if port.count > 1 else ''} {port.purpose}"
        for port in plan.ports
        if port.node == hold.node and port.process in hold.processes and port.listens
    ]
    logs = {
        process.log: evidence.last_line(run_dir.node(hold.node).path / process.log)
        for process in plan.nodes[hold.node].processes
        if process.name in hold.processes
    }
    address = plan.nodes[hold.node].address
    return {**asdict(hold), "state": _state(hold), "address": address, "ports": ports, "logs": logs}


def _state(hold: Hold) -> str:
    if hold.up:
        return "up"
    if hold.alive:
        return "ending"
    if hold.ended:
        return "ended"
    return "died" if hold.died else "unknown: it is on another host"


def text(entry: dict[str, Any]) -> str:
    """A step for people."""
    clock = time.strftime("%H:%M:%S", time.localtime(entry["since"]))
    line = f"node {entry['node']} {entry['step']}: {entry['state']}, pid {entry['pid']} on "
    line += f"{entry['host']}, since {clock}"
    if entry["state"] == "up" and entry["step"] in holding.HOLDING:
        line += f", until {time.strftime('%m-%d %H:%M:%S', time.localtime(entry['until']))}"
    lines = [line]
    if entry["state"] == "up" and entry["ports"]:
        lines.append(f"    {entry['address']} ports {', '.join(entry['ports'])}")
    if entry["why"] and entry["state"] != "up":
        lines.append(f"    {(entry['cause'] or {}).get('reason') or entry['why']}")
    lines += [f"    {log}: {last}" for log, last in entry["logs"].items() if last]
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", default="runs/latest", help="default: runs/latest")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def work(arguments: argparse.Namespace) -> int:
    """Say it."""
    run_dir = RunDir(Path(arguments.run_dir))
    found = run(run_dir)
    if arguments.format == "json":
        print(dumps(found, indent=2))
    else:
        print(
            "\n".join(foreign.block(text(entry)) for entry in found)
            or f"no step was begun in {run_dir.path}"
        )
    held = [entry for entry in found if entry["step"] in holding.HOLDING]
    bad = [entry for entry in held if entry["cause"] or entry["state"] == "died"]
    return int(Exit.INFRA if bad else Exit.PASS)


main = door.Verb("status", __doc__, _options, work)

if __name__ == "__main__":
    raise SystemExit(main())
