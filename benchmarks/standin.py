"""Figures of the stand-in vllm: start time, memory of each process, streams at once.

Usage: python benchmarks/standin.py [STREAMS ...] (default 200 700). Loopback only; ends what it
starts.
Prints one JSON object: seconds from the start of the process to a parsed command (`vllm --version`
and a refused command), to the first 200 of /health with a load time of 0, RSS in MiB of each
process,
and for each number of streams (50 tokens each, 2 ms a token): complete streams, tokens/s, TTFT
and time between tokens in ms (mean, p99), CPU seconds of the server's processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VLLM = [sys.executable, str(ROOT / "rehearsal" / "bin" / "vllm")]
ADDRESS, PORT, TOKENS = "127.77.250.1", 18999, 50


def seconds(argv: list[str], runs: int = 9) -> float:
    """Median wall time of a command."""
    found = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run(argv, capture_output=True, check=False)
        found.append(time.perf_counter() - begun)
    return round(statistics.median(found), 3)


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def rss(pid: int) -> float:
    """Resident MiB of a process."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x)
    return round(int(line.split()[1]) / 1024, 1)


def cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_ready() -> None:
    """Until /health answers 200."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://{ADDRESS}:{PORT}/health", timeout=2),
        ):
            return
        time.sleep(0.005)
    raise SystemExit("the stand-in did not become ready in 30 s")


async def stream(request: bytes) -> tuple[bool, float, list[float]]:
    """One stream: complete or not, TTFT, and the gaps between reads that brought tokens."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(ADDRESS, PORT)
    writer.write(request)
    times: list[float] = []
    count = 0
    while data := await reader.read(65536):
        if new := data.count(b'"text":'):
            count += new
            times.append(time.perf_counter())
    writer.close()
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    return count == TOKENS, (times[0] - begun if times else float("inf")), gaps


async def load(streams: int) -> dict[str, Any]:
    """All streams at once."""
    body = json.dumps(
        {"prompt": "word " * 200, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    begun = time.perf_counter()
    results = await asyncio.gather(*(stream(head.encode() + body) for _ in range(streams)))
    wall = time.perf_counter() - begun
    ttft = sorted(result[1] * 1000 for result in results)
    gaps = sorted(gap * 1000 for result in results for gap in result[2])
    return {
        "complete": sum(result[0] for result in results),
        "wall_s": round(wall, 2),
        "tokens_per_s": round(streams * TOKENS / wall),
        "ttft_ms": [round(statistics.mean(ttft), 1), round(ttft[int(len(ttft) * 0.99)], 1)],
        "gap_ms": [round(statistics.mean(gaps), 1), round(gaps[int(len(gaps) * 0.99)], 1)],
    }


def main(argv: list[str]) -> int:
    """Measure and print."""
    figures: dict[str, Any] = {
        "python": seconds([sys.executable, "-c", "pass"]),
        "version_s": seconds([*VLLM, "--version"]),
        "refused_s": seconds([*VLLM, "serve", "M", "--bogus"]),
    }
    environment = {
        **os.environ,
        "REHEARSAL_ADDRESS": ADDRESS,
        "REHEARSAL_DEVICES": "2",
        "REHEARSAL_LOAD_SECONDS": "0",
    }
    options = ["-dp", "2", "--max-num-seqs", "1024", "--disable-uvicorn-access-log"]
    begun = time.perf_counter()
    server = subprocess.Popen(
        [*VLLM, "serve", "M", "--port", str(PORT), *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_ready()
        figures["ready_s"] = round(time.perf_counter() - begun, 3)
        members = family(server.pid)
        figures["rss_mib_idle"] = [rss(pid) for pid in members]
        for streams in [int(word) for word in argv] or [200, 700]:
            before = sum(cpu(pid) for pid in members)
            figures[f"streams_{streams}"] = asyncio.run(load(streams))
            spent = sum(cpu(pid) for pid in members) - before
            figures[f"streams_{streams}"]["server_cpu_s"] = round(spent, 2)
        figures["rss_mib_after"] = [rss(pid) for pid in members]
        begun = time.perf_counter()
        os.killpg(server.pid, signal.SIGTERM)
        figures["exit_code"] = server.wait(10)
        figures["stop_s"] = round(time.perf_counter() - begun, 3)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
