"""What a node program costs while it holds: resident memory and CPU.

    python benchmarks/node_idle.py --seconds 15

A rehearsal whose stand-ins load for long; the worker holds, the leader waits.
Targets: 60 MB, 2 % of a core.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from runs import ROOT


def programs(path: Path) -> dict[int, psutil.Process]:
    """Node index -> its program, without the guard it forked."""
    found = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or []
        if "steps.node" in words and str(path.resolve()) in words:
            index = int(words[words.index("--node-index") + 1])
            if index not in found or process.info["ppid"] != found[index].pid:
                found[index] = process
    return found


def measure(seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each node."""
    load = str(int(seconds + 25))
    with tempfile.TemporaryDirectory(prefix="node-idle-") as place:
        path = Path(place) / "run"
        argv = [sys.executable, "-m", "ci.run", "quickstart.yaml", "--rehearse", "--run-dir"]
        argv += [str(path), "--load-seconds", load, "--timeout", "load=120"]
        run = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        try:
            while not all((path / f"node-{i}" / "server.log").exists() for i in (0, 1)):
                time.sleep(0.2)
            time.sleep(5)
            nodes = programs(path)
            before = {i: (time.monotonic(), p.cpu_times()) for i, p in nodes.items()}
            time.sleep(seconds)
            for index, process in sorted(nodes.items()):
                since, then = before[index]
                now = process.cpu_times()
                busy = now.user + now.system - then.user - then.system
                took = time.monotonic() - since
                yield {
                    "node": index,
                    "role": "leader, in load" if index == 0 else "worker, in hold",
                    "rss_mb": round(process.memory_info().rss / 1e6, 1),
                    "cpu_percent": round(100 * busy / took, 2),
                    "cpu_ms_a_second": round(1000 * busy / took, 2),
                }
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(60)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    for row in measure(parser.parse_args().seconds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
