"""From a death to "run over, cause printed" on every node, over the fault table.

    python benchmarks/fault_times.py                 every row
    python benchmarks/fault_times.py --only 2P2D --every 3

Begins with the exit as the dead process's own node saw it, or with the signal
that hit a node program; ends when the last surviving node has printed the
cause. Node programs that vanish or are stopped (SIGSTOP) are counted apart.
Targets: median 1 s, worst 2 s; 5 s for a node that vanishes; every first
cause right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from runs import Ran, rehearse
from tests.faults.table import ROWS, Row


def began(row: Row, ran: Ran) -> float | None:
    """When it died, in seconds since the epoch."""
    if row.process == "node" or row.fault.split("@")[1].startswith("0.proxy"):
        for event in ran.events("note"):
            if event["text"].startswith(f"fault {row.fault}: signal"):
                return float(event["time"])
    for event in ran.events("exited"):
        if event["node"] == row.node and event["process"] == row.process:
            return float(event["time"])
    return None


def known(row: Row, ran: Ran) -> float | None:
    """When the last node that can still speak had printed the cause."""
    times = {event["node"]: event["time"] for event in ran.events("cause")}
    mute = set(row.silent) | ({row.node} if row.process == "node" else set())
    spoke = [time for node, time in times.items() if node >= 0 and node not in mute]
    return float(max(spoke)) if spoke else None


def right(row: Row, ran: Ran) -> bool:
    """Whether the verdict names what the table says."""
    verdict = ran.verdict
    cause = verdict["cause"] or {}
    if row.verdict == verdict["verdict"] == "pass":
        return True
    return (
        verdict["verdict"] in row.verdict.split("|")
        and ran.code == row.exit_code
        and row.node in (None, cause.get("node"))
        and row.process in ("", cause.get("process"))
    )


def summary(times: list[float]) -> dict[str, Any]:
    """Median and worst."""
    if not times:
        return {"rows": 0}
    return {
        "rows": len(times),
        "median_seconds": round(statistics.median(times), 3),
        "worst_seconds": round(max(times), 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument("--every", type=int, default=1, help="every N-th row")
    parser.add_argument("--deaths", action="store_true", help="rows of deaths alone")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if arguments.only in row.name]
    rows = [row for row in rows if not arguments.deaths or row.dies or "stop@" in row.fault]
    deaths: list[float] = []
    vanished: list[float] = []
    wrong: list[str] = []
    rows = rows[:: arguments.every]
    for row in rows:
        with tempfile.TemporaryDirectory(prefix="fault-times-") as place:
            ran = rehearse(
                row.case, Path(place) / "run", "--load-seconds", "0.5", "--fault", row.fault,
                *row.extra,
            )  # fmt: skip
            if not right(row, ran):
                wrong.append(row.name)
            start, end = began(row, ran), known(row, ran)
            took = None if start is None or end is None else round(end - start, 3)
            cause = (ran.verdict["cause"] or {}).get("reason", "")
            print(json.dumps({"row": row.name, "seconds": took, "cause": cause}), flush=True)
            if took is not None and (row.dies or row.process == "node"):
                (vanished if row.process == "node" else deaths).append(took)
    print(
        json.dumps(
            {
                "deaths": summary(deaths),
                "node_programs": summary(vanished),
                "rows": len(rows),
                "wrong": wrong,
            }
        )
    )


if __name__ == "__main__":
    main()
