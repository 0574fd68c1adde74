"""size: how much load a case's fleet carries within limits, without editing the case.

Enters: a case, limits, where to run it. Leaves: a directory with the case that was run, the run,
``proposal.yaml``; the run's exit code. Touches: what ``ci.run`` touches.

    nox -s size -- CASE --slo 'tpot_p99_ms<=50' --on k8s
    nox -s size -- CASE --slo 'tpot_p99_ms<=50' --slo 'ttft_p99_ms<=2000' --maximise request_rate
    nox -s size -- CASE --slo 'ttft_p99_ms<=2000' --within 8,256 --rehearse

What follows is passed on to ``ci.run``. The case's first performance benchmark is searched, or
the one that is named; its baseline and gates are for another load, and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ci import run as ci_run
from ci.tools import casefile
from steps.bench_drivers.caches import RESETS
from steps.core import door, foreign
from steps.core.case import gates
from steps.core.errors import UsageError
from steps.core.node import wishes
from steps.core.record.records import BenchResult, bench_from
from steps.core.record.rundir import RunDir, new_run_id, read_json
from steps.core.redaction import here

MAXIMISED = ("batch_size", "request_rate", "output_throughput")
#: The range where none is given; of the batch size at least this much, and more for a larger case.
RATES, WIDTH = (0.25, 64.0), 256
#: What a benchmark judges at its own load.
JUDGES = ("baseline", "threshold", "gates", "gate", "reason", "sweep", "find", "repeat", "confirm")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", help="a case: a path, or a name in configs/")
    parser.add_argument(
        "--slo", action="append", default=[], metavar="LIMIT", help="such as 'tpot_p99_ms<=50'"
    )
    parser.add_argument("--maximise", choices=MAXIMISED, default="batch_size")
    parser.add_argument("--within", default="", metavar="LOW,HIGH", help="the range of loads")
    parser.add_argument("--tolerance", type=door.at_least(0.01), default=0.05, help="default 0.05")
    parser.add_argument("--benchmark", default="", metavar="NAME", help="default: the first")
    parser.add_argument("--only", default="", metavar="NAME", help="of a file of several cases")
    parser.add_argument("--dir", type=Path, help="default: runs/size-<id>")


def run(arguments: argparse.Namespace) -> int:
    """Search, and propose what was found."""
    if not arguments.slo:
        raise UsageError("no limit is given", "Give one: --slo 'tpot_p99_ms<=50'.")
    for limit in arguments.slo:
        try:
            gates.parse(limit)
        except ValueError as error:
            raise UsageError(f"--slo: found {limit[:80]!r}, {error}") from None
    path = wishes.find_case(arguments.case)
    content, case = casefile.opened(path, arguments.only)
    name, entry = chosen(case.get("benchmarks") or {}, arguments.benchmark)
    wanted = {
        "maximise": arguments.maximise,
        "subject_to": list(arguments.slo),
        "within": _range(arguments.within, arguments.maximise, entry),
        "tolerance": arguments.tolerance,
    }
    home = arguments.dir or Path("runs") / f"size-{new_run_id()}"
    if home.exists() and any(home.iterdir()):
        raise UsageError(f"{home} holds something else", "Name another --dir.")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    door.keep_in(home)
    case["benchmarks"] = {name: {**_bare(entry), "find": wanted}}
    envs = "env_common" if case is content else "envs"
    case[envs] = {RESETS: 1, **(case.get(envs) or {})}
    made = home / "case.yaml"
    casefile.written(made, content, arguments.only)
    words = [str(made), *(["--only", arguments.only] if arguments.only else [])]
    code = ci_run.main([*words, "--run-dir", str(home / "run"), *arguments.more])
    result = found(home / "run", name)
    if result is None or "capacity" not in result.metrics:
        return code
    case["benchmarks"] = proposed(name, entry, wanted, result)
    casefile.written(home / "proposal.yaml", content, arguments.only)
    _tell(result, case["benchmarks"], home / "proposal.yaml")
    return code


def chosen(benchmarks: Mapping[str, Any], wanted: str) -> tuple[str, dict[str, Any]]:
    """The benchmark that is searched.

    Raises:
        UsageError: there is none that measures performance.
    """
    able = {
        name: dict(entry)
        for name, entry in benchmarks.items()
        if isinstance(entry, dict) and entry.get("case_type") == "performance"
    }
    if not able:
        raise UsageError("the case has no performance benchmark", "Add one; its load is varied.")
    if wanted and wanted not in able:
        hint = f"There are: {', '.join(map(str, able))}."
        raise UsageError(f"--benchmark: found {wanted!r}, which measures no performance", hint)
    name = wanted or next(iter(able))
    return name, able[name]


def _range(text: str, maximised: str, entry: Mapping[str, Any]) -> list[float]:
    if text:
        try:
            low, high = (float(part) for part in text.split(","))
        except ValueError:
            raise UsageError(f"--within: found {text!r}, expected LOW,HIGH such as 1,256") from None
        return [low, high]
    if maximised == "request_rate":
        return [*RATES]
    return [1, max(WIDTH, 4 * int(entry.get("batch_size") or 1))]


def _bare(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in JUDGES and not k.endswith("_threshold")}


def found(directory: Path, name: str) -> BenchResult | None:
    """What a run measured; None when it came to nothing."""
    verdict = read_json(RunDir(directory).verdict)
    for entry in verdict.get("benchmarks", ()) if isinstance(verdict, dict) else ():
        if entry.get("name") == name:
            with contextlib.suppress(ValueError):
                return bench_from(entry)
    return None


def proposed(
    name: str, entry: Mapping[str, Any], wanted: Mapping[str, Any], result: BenchResult
) -> dict[str, Any]:
    """Two benchmarks for the case: one at the load that surely holds, one that searches again."""
    knob = "request_rate" if wanted["maximise"] == "request_rate" else "batch_size"
    loads = [float(point.load[knob]) for point in result.points if point.held and not point.wrong]
    load = result.metrics["capacity_low"]
    if wanted["maximise"] == "output_throughput":
        load = max(loads, default=float(wanted["within"][0]))
    value = max(math.floor(load), 1) if knob == "batch_size" else float(f"{load:.3g}")
    bare = _bare(entry)
    fixed: dict[str, Any] = {**bare, knob: value, "gates": [*wanted["subject_to"]]}
    capacity = float(f"{result.metrics['capacity']:.4g}")
    return {
        name: fixed,
        f"{name}-capacity": {**bare, "find": dict(wanted), "baseline": capacity, "threshold": 0.97},
    }


def _tell(result: BenchResult, benchmarks: Mapping[str, Any], path: Path) -> None:
    metrics = result.metrics
    words = "capacity {capacity:g} ({capacity_low:g} to {capacity_high:g}, 95 %)".format(**metrics)
    text = yaml.safe_dump({"benchmarks": dict(benchmarks)}, sort_keys=False, allow_unicode=True)
    lines = [f"{result.name}: {words}; {result.note}", "Proposed for the case:", text]
    told = here().text("\n".join([*lines, f"As a whole case: {path}"]))
    print(foreign.block(told), flush=True)


main = door.Verb("size", __doc__, _options, run, more=True)

if __name__ == "__main__":
    sys.exit(main())
