"""What the harness itself costs in the quickstart.

    python benchmarks/quickstart.py --runs 5

Overhead: the wall time of the session's command less the stand-ins' load time
and the benchmark's. First request: from the last endpoint seen healthy to the
benchmark's first request. Targets: 3 s, 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from runs import Ran, rehearse

LOAD_SECONDS = 1.0


def overhead(ran: Ran) -> float:
    """Seconds of the run that neither load nor benchmark used."""
    return ran.seconds - LOAD_SECONDS - phase(ran, "bench")


def phase(ran: Ran, name: str) -> float:
    """Seconds the leader spent in a phase."""
    ends = [e for e in ran.events("phase-end") if (e["phase"], e["node"]) == (name, 0)]
    return float(sum(event["seconds"] for event in ends))


def first_request(ran: Ran) -> float:
    """Seconds from the last endpoint that became ready to the first benchmark request."""
    ready = max(event["time"] for event in ran.events("ready"))
    begun = min(event["time"] for event in ran.events("benchmark"))
    rows = (ran.path / "node-0" / "bench").rglob("requests.jsonl")
    starts = [json.loads(line)["begun"] for path in rows for line in path.open()]
    return float(begun + min(starts) - ready)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    costs, waits, phases = [], [], {}
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="quickstart-") as place:
            ran = rehearse(
                "quickstart.yaml", Path(place) / "run", "--load-seconds", f"{LOAD_SECONDS:g}"
            )
            assert ran.code == 0, ran.verdict
            costs.append(overhead(ran))
            waits.append(first_request(ran))
            names = ("join", "preflight", "load", "probe", "bench", "proof", "stop", "collect")
            phases = {name: phase(ran, name) for name in names}
    print(
        json.dumps(
            {
                "runs": arguments.runs,
                "overhead_median_seconds": round(statistics.median(costs), 2),
                "overhead_best_seconds": round(min(costs), 2),
                "first_request_median_seconds": round(statistics.median(waits), 3),
                "last_run_phases": phases,
            }
        )
    )


if __name__ == "__main__":
    main()
