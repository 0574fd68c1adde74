"""The quickstart on a machine whose environment names a proxy that does not answer.

    python benchmarks/proxies.py

Three proxy variables, each with six values of NO_PROXY that people have. Target:
every run passes, in the time it takes without a proxy.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    sys.executable, "-m", "ci.run", "configs/quickstart.yaml", "--rehearse",
    "--timeout", "load=20", "--run-dir",
)  # fmt: skip
PROXIES = ("http_proxy", "HTTP_PROXY", "ALL_PROXY")
EXEMPT = ("", "localhost", "localhost,127.0.0.1", "10.0.0.0/8,192.168.0.0/16", ".corp.example", "*")


def once(env: dict[str, str]) -> tuple[int, float]:
    """Exit code and seconds of one rehearsal."""
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        done = subprocess.run(
            [*COMMAND, f"{name}/run"],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            check=False,
        )
        return done.returncode, time.monotonic() - began


def main() -> int:
    """Print a line a run; 1 when one did not pass."""
    code, seconds = once({})
    print(f"{'without':12} {'':30} exit {code}, {seconds:.1f} s")
    wrong = int(code != 0)
    for proxy, exempt in itertools.product(PROXIES, EXEMPT):
        code, seconds = once({proxy: "http://127.0.0.1:9", "NO_PROXY": exempt})
        print(f"{proxy:12} NO_PROXY={exempt:21} exit {code}, {seconds:.1f} s")
        wrong += code != 0
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
