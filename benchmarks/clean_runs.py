"""False alarms: clean rehearsals while every core is busy with something else.

    python benchmarks/clean_runs.py --runs 200 --busy 2

Counts the runs that did not pass, and shows what the stop of a healthy fleet
took over the slowest process's own stop. Targets: 0 of 200; 1 s.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from runs import Ran, rehearse


def burn() -> None:
    """Keep one core busy."""
    while True:
        sum(range(10_000))


def stop_excess(ran: Ran) -> float:
    """Seconds the fleet's stop took over the slowest process's own stop."""
    ends = [event for event in ran.events("phase-end") if event["phase"] == "stop"]
    first = min(event["time"] - event["seconds"] for event in ends)
    whole = max(event["time"] for event in ends) - first
    return float(whole - max(event["seconds"] for event in ran.events("stopped")))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--busy", type=int, default=2, help="processes that keep a core busy each")
    parser.add_argument("--case", default="quickstart.yaml")
    arguments = parser.parse_args()
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(arguments.busy)]
    for burner in burners:
        burner.start()
    alarms: list[str] = []
    excess: list[float] = []
    began = time.monotonic()
    try:
        for number in range(arguments.runs):
            with tempfile.TemporaryDirectory(prefix="clean-runs-") as place:
                ran = rehearse(arguments.case, Path(place) / "run", "--load-seconds", "0.5")
                if ran.code:
                    cause = ran.verdict["cause"] or {}
                    alarms.append(f"run {number}: {ran.verdict['verdict']}: {cause.get('reason')}")
                    print(alarms[-1], file=sys.stderr, flush=True)
                else:
                    excess.append(stop_excess(ran))
    finally:
        for burner in burners:
            burner.kill()
    print(
        json.dumps(
            {
                "runs": arguments.runs,
                "false_alarms": len(alarms),
                "alarms": alarms,
                "worst_stop_excess_seconds": round(max(excess), 3) if excess else None,
                "seconds_a_run": round((time.monotonic() - began) / arguments.runs, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
