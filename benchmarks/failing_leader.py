"""By hand, the leader fails at once: when does the worker end, and with what?

    python benchmarks/failing_leader.py [--starts 20]

Two node programs of the quickstart are started together; a stranger listens on
a port of the leader's, so its preflight fails as soon as both have met. Target:
in every start the worker ends within 2 s of the leader's cause, with that cause.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from steps.core.case.build import load_case  # noqa: E402
from steps.core.plan.cluster import Rehearsal  # noqa: E402
from steps.core.plan.clusters import free_network, local  # noqa: E402
from steps.core.plan.resolver import resolve  # noqa: E402

CASE = ROOT / "configs" / "quickstart.yaml"


def start(root: Path, run_dir: Path, index: int, network: str) -> subprocess.Popen[bytes]:
    """A node program as a person types it."""
    argv = [sys.executable, "-m", "steps.node", "--case", str(CASE), "--node-index", str(index)]
    argv += ["--rehearse", "--network", network, "--run-dir", str(run_dir)]
    env = {**os.environ, "MULTINODE_TOKEN": "the-same-secret"}
    with (root / f"{index}.log").open("wb") as log:
        return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def once() -> tuple[float, str]:
    """Seconds from the leader's cause to the worker's end, and what was wrong, if anything."""
    network = free_network(8080)
    case = load_case(CASE)
    plan = resolve(case, local(case, rehearsal=Rehearsal(), network=network))
    port = next(p for p in plan.ports if p.node == 0 and p.process == "server" and p.listens)
    with tempfile.TemporaryDirectory() as name, socket.socket() as taken:
        root = Path(name)
        taken.bind((plan.nodes[0].address, port.port))
        taken.listen()
        dirs = [root / "run-0", root / "run-1"]
        programs = [start(root, dirs[i], i, network) for i in (0, 1)]
        ends: dict[int, float] = {}
        deadline = time.monotonic() + 150
        while len(ends) < 2 and time.monotonic() < deadline:
            for index, program in enumerate(programs):
                if index not in ends and program.poll() is not None:
                    ends[index] = time.time()
            time.sleep(0.005)
        for program in programs:
            if program.poll() is None:
                program.kill()
        codes = [program.wait() for program in programs]
        said = (root / "1.log").read_text(errors="replace")[-400:]
        if len(ends) < 2:
            return 0.0, f"no end within 150 s: {said}"
        record = json.loads((dirs[1] / "node-1" / "record.json").read_text())
        cause = record["cause"] or {}
        lines = (dirs[0] / "node-0" / "events.jsonl").read_text().splitlines()
        told = [e["time"] for e in map(json.loads, lines) if e["what"] == "cause"]
        if codes[0] != codes[1] or not codes[1] or cause.get("node") != 0 or not told:
            return 0.0, f"codes {codes}, the worker's cause {cause.get('reason')}: {said}"
        return ends[1] - told[0], ""


def main() -> int:
    """Print the figures; 1 when a worker ended wrongly or late."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=20)
    arguments = parser.parse_args()
    found = [once() for _ in range(arguments.starts)]
    for _, complaint in found:
        if complaint:
            print(complaint)
    times = [seconds for seconds, complaint in found if not complaint]
    if times:
        print(f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s", end=", ")
    print(f"{len(times)} of {len(found)} right")
    return 0 if len(times) == len(found) and max(times) <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
