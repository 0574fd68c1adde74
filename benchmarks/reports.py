"""Figures of reports, of an hour of telemetry, the matrix and the history, measured.

    python -m benchmarks.reports            all of them
    python -m benchmarks.reports matrix     one

Each is measured in a process of its own; memory is that process's peak (RSS).
"""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOG_BYTES = 1_000_000_000


def big_run(path: Path) -> None:
    """4 nodes, 3 benchmarks of 2,800 requests, 1 GB of logs."""
    from steps.core.case.build import load_case
    from steps.core.plan.plan import Plan
    from steps.core.plan.resolver import Options, resolve
    from steps.core.record.records import BenchResult
    from tests.ci import runs
    from tests.core.cases import cluster_of

    case = load_case(ROOT / "configs" / "DeepSeek-V3.2-W8A8-2P2D.yaml")
    plan: Plan = resolve(case, cluster_of(4), Options("run-1", "", {}))
    first = plan.benchmarks[0]
    named = [replace(first.benchmark, name=name) for name in ("one", "two", "three")]
    plan = replace(plan, benchmarks=tuple(replace(first, benchmark=b) for b in named))
    metrics = {f"{k}_{s}_ms": 1.0 for k in ("ttft", "tpot", "e2el") for s in ("mean", "p99")}
    results: list[BenchResult] = [
        replace(runs.bench(metrics=metrics, directory=f"0{at}-{b.name}"), name=b.name)
        for at, b in enumerate(named)
    ]
    run_dir = runs.make(path, plan, benchmarks=tuple(results))
    for result in results:
        place = run_dir.node(0).bench / result.directory
        place.mkdir(parents=True, exist_ok=True)
        runs.requests(place / "requests.jsonl", 2800, 1500)
    line = b"INFO 11-23 18:00:00 [loggers.py:123] Engine 000: Avg prompt throughput: 1.0\n"
    block = line * (1_000_000 // len(line))
    for node in plan.nodes:
        with (run_dir.node(node.index).path / "server.log").open("wb") as out:
            for _ in range(LOG_BYTES // len(plan.nodes) // len(block)):
                out.write(block)
            out.write(b"ERROR at last\n" + block)


def hour(path: Path, nodes: int = 16, ranks: int = 4, seconds: int = 3600) -> None:
    """A split fleet of ``nodes * ranks`` engines, sampled each second for an hour of load."""
    from steps.core.case.build import load_case
    from steps.core.plan.resolver import Options, resolve
    from steps.core.record import telemetry
    from steps.core.record.records import PhaseRecord, to_dict
    from steps.core.record.rundir import write_json
    from tests.ci import runs
    from tests.core.cases import cluster_of
    from tests.core.records import records_of
    from tests.realpath import fleet

    case = fleet.routing(21_000)
    groups = {"prefiller": list(range(nodes // 2)), "decoder": list(range(nodes // 2, nodes))}
    case["routing"]["groups"], case["num_nodes"], case["npu_per_node"] = groups, nodes, ranks
    shape = {**case["config"][0], "dp_size": ranks, "dp_size_local": ranks}
    case["config"] = [
        {**shape, "node_index": i, "dp_address": f"${{NODE_{i}_IP}}"} for i in range(nodes)
    ]
    case["templates"] = [{**case["templates"][0], "node_index": i} for i in range(nodes)]
    file = path / "case.yaml"
    file.write_text(json.dumps(case), encoding="utf-8")
    known = {"HOME": "/root", "MODELS": "/models", "DATASETS": "/datasets"}
    plan = resolve(load_case(file), cluster_of(nodes, known=known), Options("run-1", "", {}))
    result = runs.bench(directory="00-chat", started=1060.0, seconds=seconds - 80.0)
    run_dir = runs.make(path / "run", plan, benchmarks=(result,))
    runs.requests(run_dir.node(0).bench / "00-chat" / "requests.jsonl", 2800, 1500)
    lines = _lines_of_an_engine(seconds)
    for node in plan.nodes:
        record = records_of(plan, benchmarks=(result,))[node.index]
        assert record is not None
        phases = (PhaseRecord("load", 1000.0, 60.0), PhaseRecord("bench", 1060.0, seconds - 80.0))
        record = replace(record, phases=phases, started=1000.0, ended=1000.0 + seconds)
        write_json(run_dir.node(node.index).record, to_dict(record))
        servers = [server.name for server in node.processes if server.kind == "server"]
        with gzip.open(run_dir.node(node.index).path / telemetry.NAME, "wt", 6) as out:
            out.write(json.dumps({"schema": telemetry.SCHEMA, "started": 1000.0}) + "\n")
            out.writelines(line.replace("SERVER", name) for line in lines for name in servers)


def _lines_of_an_engine(seconds: int) -> list[str]:
    """As the sampler writes them when everything that vLLM tells changes each second."""
    from steps.core.node.sampler import Source
    from steps.core.vllm import metrics
    from tests.telemetry.fakes import page

    reader, rng = metrics.Reader(), random.Random(7)
    reader.read(page(1))
    values = [0.0] * len(reader.keys)

    def ask() -> tuple[tuple[str, ...], list[str]]:
        for place, key in enumerate(reader.keys):
            gauge = key.split("|")[0] in ("running", "waiting", "kv_usage")
            values[place] = rng.random() if gauge else values[place] + rng.randrange(900)
        return reader.keys, [str(value) for value in values]

    source, found = Source("SERVER", ask), []
    for moment in range(seconds):
        for line in source.look():
            told = line if isinstance(line, dict) else {"t": moment, "v": {"SERVER": line}}
            found.append(json.dumps(told) + "\n")
    return found


def in_process(code: str) -> tuple[str, float]:
    """What a Python process that runs ``code`` took: seconds by the clock and of CPU, and MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{took:.2f} s ({cpu:.2f} s of CPU)", after.ru_maxrss / 1000


def report(scratch: Path) -> None:
    """Time, memory and size of a large run's report, and when a browser has it."""
    big_run(scratch / "run")
    _whole_page(scratch, "a large run: at most 10 s, 300 MB, 5 MB")


def telemetry(scratch: Path) -> None:
    """The same of 64 engines that were sampled for an hour."""
    hour(scratch)
    sizes = [path.stat().st_size for path in scratch.glob("run/node-*/telemetry.jsonl.gz")]
    print(f"telemetry: {len(sizes)} nodes, {max(sizes) / 1e6:.2f} MB the largest file")
    _whole_page(scratch, "64 engines, one hour: at most 15 s, 400 MB, 8 MB")


def _whole_page(scratch: Path, limits: str) -> None:
    code = f"from ci.report import html; raise SystemExit(html.main([{str(scratch / 'run')!r}]))"
    took, memory = in_process(code)
    page = scratch / "run" / "report.html"
    size = page.stat().st_size / 1e6
    print(f"report: {took}, {memory:.0f} MB, {size:.2f} MB ({limits})")
    chromium = shutil.which("chromium")
    if chromium is None:
        print("report in a browser: not measured, chromium is not installed")
        return
    probe = scratch / "probe.html"
    text = re.sub(r"<meta http-equiv.*?>", "", page.read_text(encoding="utf-8"))
    script = (
        "<script>addEventListener('load',()=>{document.body.offsetHeight;"
        "document.title='ms '+Math.round(performance.now())})</script>"
    )
    probe.write_text(text.replace("<head>", f"<head>{script}", 1), encoding="utf-8")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-quic", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={scratch / 'profile'}", "--dump-dom",
            probe.as_uri(),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"<title>ms (\d+)</title>", done.stdout)
    print(f"report usable in a browser after {found[1] if found else '?'} ms (at most 1000 ms)")


def matrix(scratch: Path) -> None:
    """A matrix of 200 entries, each with a case of its own."""
    configs = scratch / "configs"
    configs.mkdir()
    text = (ROOT / "configs" / "DeepSeek-V3.yaml").read_text(encoding="utf-8")
    entries = []
    for number in range(200):
        (configs / f"c{number}.yaml").write_text(text, encoding="utf-8")
        entries.append(
            {
                "name": f"c{number}", "case": str(configs / f"c{number}.yaml"), "size": 2,
                "profile": "a3", "runner": "x", "cadence": "nightly", "owner": "us",
            }
        )  # fmt: skip
    file = scratch / "nightly.yaml"
    file.write_text(json.dumps({"a3": entries}), encoding="utf-8")
    took, _ = in_process(
        f"from ci.nightly import matrix; assert matrix.main(['--file', {str(file)!r}]) == 0"
    )
    print(f"matrix of 200 entries: {took} (at most 1 s)")


def history(scratch: Path) -> None:
    """100,000 results of 50 cases, and as many of one: the trend of one case."""
    from ci.nightly.history import Result, encode

    for cases in (50, 1):
        store = scratch / f"store-{cases}"
        for number in range(100_000):
            result = Result(
                f"run-{number}", f"case-{number % cases}", 1.7e9 + number * 600, "pass",
                benchmarks={"chat": {f"m{i}": 1.0 for i in range(20)} | {"output_throughput": 1e3}},
            )  # fmt: skip
            moment = time.gmtime(result.time)
            folder = store / "v1" / result.case / time.strftime("%Y-%m", moment)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{time.strftime('%Y%m%dT%H%M%S', moment)}-{result.run}.json"
            (folder / name).write_text(encode(result), encoding="utf-8")
        took, _ = in_process(
            "from ci.nightly import trend; "
            f"assert trend.main(['case-0', '--store', {str(store)!r}]) == 0"
        )
        print(f"trend of one of {cases} cases, 100,000 results: {took} (at most 1 s)")


FIGURES = {"matrix": matrix, "history": history, "report": report, "telemetry": telemetry}


def main() -> None:
    """Measure what is named, or all."""
    for name in sys.argv[1:] or FIGURES:
        with tempfile.TemporaryDirectory(prefix="multinode-figures-") as scratch:
            FIGURES[name](Path(scratch))


if __name__ == "__main__":
    main()
