"""From the death of an engine to its printed cause, with a 100 MB line in its log.

    python benchmarks/long_lines.py [--runs 5] [--megabytes 100]

Two nodes on this machine without stand-ins; the engine of node 1 writes one
line of every kind below and dies. Begins with the exit as the node program saw
it; ends when the runner has printed the cause. Target: 1 s, the right verdict
(startup, node 1), and no node called lost.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = """#!{python}
import os, sys, time
if "--headless" not in sys.argv:
    time.sleep(600)
filling = {filling!r}
for _ in range({megabytes}):
    sys.stdout.write(filling * (1_000_000 // len(filling)))
sys.stdout.write("ERROR RuntimeError: the engine gave up\\n")
sys.stdout.flush()
sys.exit(1)
"""
CASE = """test_name: long
model: demo/m
num_nodes: 2
npu_per_node: 1
deployment:
  - server_cmd: vllm serve demo/m --port 8080 --data-parallel-size 2 --data-parallel-size-local 1
      --data-parallel-address $MASTER_IP --data-parallel-rpc-port 13389
  - server_cmd: vllm serve demo/m --headless --data-parallel-size 2 --data-parallel-size-local 1
      --data-parallel-start-rank 1 --data-parallel-address $MASTER_IP
      --data-parallel-rpc-port 13389
benchmarks: {}
"""
KINDS = {"dashes": "-", "numbers": "0.1234, ", "progress": "\r 12%|#   | 3/9 ", "lines": "fine\n"}


def measure(filling: str, megabytes: int) -> tuple[float, str]:
    """Seconds from the exit to the printed cause, and what was wrong, if anything."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        engine = root / "bin" / "vllm"
        engine.parent.mkdir()
        text = ENGINE.format(python=sys.executable, filling=filling, megabytes=megabytes)
        engine.write_text(text)
        engine.chmod(0o755)
        (root / "long.yaml").write_text(CASE)
        run = root / "run"
        command = [sys.executable, "-m", "ci.run", str(root / "long.yaml"), "--on", "local"]
        done = subprocess.run(
            [*command, "--run-dir", str(run)],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{engine.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        verdict = json.loads((run / "verdict.json").read_text())
        cause = verdict["cause"] or {}
        right = (done.returncode, verdict["verdict"], cause.get("node")) == (1, "startup", 1)
        right = right and "gave up" in json.dumps(cause)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        exited = [e["time"] for e in events if e["what"] == "exited" and e["node"] == 1]
        caused = [e["time"] for e in events if e["what"] == "cause"]
        if not (right and exited and caused):
            return 0.0, done.stdout[-600:] + done.stderr[-600:]
        return max(caused) - min(exited), ""


def main() -> int:
    """Print a line a kind; 1 when a cause was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    arguments = parser.parse_args()
    wrong = 0
    for kind, filling in KINDS.items():
        found = [measure(filling, arguments.megabytes) for _ in range(arguments.runs)]
        times = [seconds for seconds, complaint in found if not complaint]
        wrong += len(found) - len(times)
        median, worst = (statistics.median(times), max(times)) if times else (0.0, 0.0)
        print(f"{kind:10} median {median:.2f} s, worst {worst:.2f} s, {len(times)} right")
        for _, complaint in found:
            if complaint:
                print(complaint)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
