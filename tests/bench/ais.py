"""An `ais_bench` that sends the same few questions each time, and reports by what it measured.

Enters: AISBench's command line. Leaves: the files of a good performance run, whose throughput is
what a warm engine gives where this one's answers were fast. Touches: the endpoint of its case.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from urllib import request

SAMPLE = Path(__file__).parents[1] / "data" / "aisbench" / "perf-good"
QUESTIONS = 4
WARM = 0.3


def seconds(url: str) -> float:
    """How long the fastest answer took."""
    took = []
    for number in range(QUESTIONS):
        body = {"messages": [{"role": "user", "content": f"{number}?"}], "stream": True}
        began = time.monotonic()
        asked = request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        request.build_opener(request.ProxyHandler({})).open(asked).read()
        took.append(time.monotonic() - began)
    return min(took)


def main(argv: list[str]) -> None:
    """One run."""
    work = Path(argv[argv.index("--work-dir") + 1])
    case = (work.parent / "case.json").read_text()
    host = re.search(r'"host_ip": "([^"]+)"', case)
    port = re.search(r'"host_port": "?(\d+)', case)
    assert host and port, case
    fast = seconds(f"http://{host[1]}:{port[1]}") < WARM
    shutil.copytree(SAMPLE, work)
    if fast:
        [file] = work.rglob("gsm8k.json")
        file.write_text(file.read_text().replace("557.0973 token/s", "1557.0973 token/s"))


if __name__ == "__main__":
    main(sys.argv)
