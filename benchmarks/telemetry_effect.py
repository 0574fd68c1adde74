"""Whether sampling a node changes what a benchmark measures there.

    python benchmarks/telemetry_effect.py --pairs 20

The smoke client loads the tests' engine, again and again, with and without a sampler in the same
program, as the leader's node program has both; the sampler looks at ``--engines`` endpoints that
print as much as vLLM's. The two take turns (ABBA), each pair is compared with itself, and the
median of the differences is told with its 95 % interval (of the order statistics, so of whatever
distribution), beside the spread of a benchmark without a sampler. Target: no effect that is larger
than that noise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from telemetry import serve

from runs import ROOT
from steps.bench_drivers import Job, smoke
from steps.core.node import sampler
from steps.core.node.http import look
from steps.core.plan.plan import Access, Endpoint, Probe
from tests.ci.runs import plan_of

METRICS = ("output_throughput", "ttft_mean_ms", "ttft_p99_ms", "tpot_mean_ms", "itl_p99_ms")
PLACE = "127.78.9.1", 8123


@contextlib.contextmanager
def engine(words: str) -> Iterator[str]:
    """The tests' engine; its URL."""
    host, port = PLACE
    argv = [sys.executable, str(ROOT / "tests" / "engine" / "bin" / "vllm"), "serve", "tiny"]
    running = subprocess.Popen(
        [*argv, "--host", host, "--port", str(port)],
        env={**os.environ, "TEST_ENGINE": words},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://{host}:{port}"
        while not look(Probe("http", f"{url}/health"), 1.0).ok:
            time.sleep(0.1)
        yield url
    finally:
        running.kill()
        running.wait()


def measured(job: Job) -> dict[str, float]:
    """One benchmark."""
    load = smoke._Load(job)
    samples = asyncio.run(load.send())
    took = time.monotonic() - load.began
    entry = job.entry.benchmark
    return dict(smoke.summarise(samples, took, entry.max_out_len, load.exact).metrics)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 %."""
    ordered, count = sorted(values), len(values)
    below = 0
    while sum(math.comb(count, k) for k in range(below + 1)) / 2**count <= 0.025:
        below += 1
    return ordered[max(below - 1, 0)], ordered[count - max(below, 1)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=48)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.Process(target=serve, args=(arguments.engines, 1, theirs))
    other.start()
    urls, _ = ours.recv()
    entry = plan_of().benchmarks[0]
    asked = replace(
        entry.benchmark, num_prompts=arguments.prompts, max_out_len=32, batch_size=8, num_warmups=1,
        request_rate=0.0,
    )  # fmt: skip
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with engine("load=0 ttft=0.05 itl=0.01") as url, tempfile.TemporaryDirectory() as place:
        job = Job(replace(entry, benchmark=asked), Endpoint(url, "tiny", "server"), Path(place))
        measured(job)
        for pair in range(arguments.pairs):
            for sampled in (False, True) if pair % 2 else (True, False):
                sources = [sampler.endpoint(f"s-{at}", Access(u)) for at, u in enumerate(urls)]
                made = sampler.Sampler([*sources, *sampler.machine()], Path(place) / "t", {})
                if sampled:
                    made.start()
                found[sampled].append(measured(job))
                if sampled:
                    made.close()
    for name in METRICS:
        without = [row[name] for row in found[False]]
        middle = statistics.median(without)
        pairs = zip(found[True], found[False], strict=True)
        differences = [100 * (a[name] - b[name]) / b[name] for a, b in pairs]
        low, high = interval(differences)
        row = {
            "metric": name,
            "without": round(middle, 3),
            "noise_percent": round(100 * statistics.stdev(without) / middle, 2),
            "effect_percent": round(statistics.median(differences), 2),
            "from_percent": round(low, 2),
            "to_percent": round(high, 2),
        }
        print(json.dumps(row), flush=True)
    ours.send("enough")
    other.join(5)


if __name__ == "__main__":
    main()
