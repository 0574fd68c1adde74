"""What sampling a node's engines and devices costs, with engines that print as much as vLLM's.

    python benchmarks/telemetry.py --seconds 30

A program samples as a node program does; its endpoints are another one's. The CPU of the sampling
program is counted, all its threads, and the bytes of its file. Then the same with a quarter of the
engines dead and a quarter that never answer. Target: 1 % of a core with 16 engines, one file of
at most 8 MB an hour (looks become fewer before it is full).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import socket
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from runs import ROOT  # noqa: F401 - makes tests importable
from steps.core.node import sampler
from steps.core.plan.plan import Access
from tests.telemetry.fakes import endpoint, page


def serve(count: int, ranks: int, told: Connection) -> None:
    """Engines, until the other end says that it is enough."""
    with contextlib.ExitStack() as stack:
        texts = [page(turn, ranks) for turn in range(1, 20)]
        urls = [
            stack.enter_context(endpoint(lambda turn: texts[turn % len(texts)]))
            for _ in range(count)
        ]
        told.send((urls, len(texts[0])))
        told.recv()


def measured(urls: list[str], seconds: float) -> dict[str, float]:
    """CPU of this program while it samples, in percent of a core, and bytes written an hour."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "t"
        sources = [sampler.endpoint(f"server-{at}", Access(url)) for at, url in enumerate(urls)]
        made = sampler.Sampler([*sources, *sampler.machine()], path, {})
        made.start()
        time.sleep(3)
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        size = path.stat().st_size
        time.sleep(seconds)
        after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
        grown = path.stat().st_size - size
        ended = time.monotonic()
        made.close()
        closing = time.monotonic() - ended
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_percent": round(100 * busy / took, 2),
        "mb_an_hour": round(grown * 3600 / took / 1e6, 2),
        "close_seconds": round(closing, 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.Process(target=serve, args=(arguments.engines, arguments.ranks, theirs))
    other.start()
    theirs.close()
    urls, size = ours.recv()
    print(json.dumps({"engines": len(urls), "bytes_a_page": size}), flush=True)
    print(json.dumps({"with": "all well", **measured(urls, arguments.seconds)}), flush=True)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        quarter = len(urls) // 4
        odd = ["http://127.0.0.1:9/metrics"] * quarter
        odd += [f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"] * quarter
        row = measured([*urls[2 * quarter :], *odd], arguments.seconds)
        print(json.dumps({"with": "a quarter dead, a quarter silent", **row}), flush=True)
    print(json.dumps({"with": "no engine", **measured([], arguments.seconds)}), flush=True)
    ours.send("enough")
    other.join(5)


if __name__ == "__main__":
    main()
