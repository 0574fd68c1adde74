"""Run directories made up for tests of what CI makes of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.core.case.build import load_case
from steps.core.case.case import Case
from steps.core.plan.clusters import ROOT
from steps.core.plan.plan import Plan, to_json
from steps.core.plan.resolver import Options, resolve
from steps.core.record.events import EventLog
from steps.core.record.records import Artifact, BenchResult, Record, to_dict
from steps.core.record.rundir import RunDir, write_json, write_text
from tests.core.cases import cluster_of
from tests.core.records import records_of

METRICS = {"output_throughput": 950.0, "success_ratio": 1.0, "ttft_p99_ms": 40.0}


def quickstart() -> Case:
    return load_case(ROOT / "configs" / "quickstart.yaml")


def plan_of(run: str = "run-1") -> Plan:
    return resolve(quickstart(), cluster_of(2), Options(run, "", {}))


def bench(**more: Any) -> BenchResult:
    fields = {
        "metrics": METRICS,
        "requests": {"ok": 24, "asked": 24},
        "directory": "00-chat",
        "started": 1010.0,
        "seconds": 45.0,
        **more,
    }
    return BenchResult("chat", "smoke", "performance", fields.pop("status", "pass"), **fields)


def make(path: Path, plan: Plan | None = None, **leader: Any) -> RunDir:
    """A run directory with records, logs, events and requests of each node."""
    plan = plan or plan_of()
    run_dir = RunDir(path).make()
    write_text(run_dir.plan, to_json(plan))
    leader.setdefault("benchmarks", (bench(),))
    for index, record in records_of(plan, **leader).items():
        assert record is not None
        node = run_dir.node(index).make()
        (node.path / "server.log").write_text(f"loading on {index}\nready <b>&amp; up</b>\n")
        artifacts = (Artifact("server.log", 30, "0" * 64),)
        versions = {"vllm": f"0.1{index}", "cann": "8.3"}
        write_json(node.record, to_dict(replace(record, artifacts=artifacts, versions=versions)))
        log = EventLog(node.events, plan.run, index)
        log.emit("note", text=f"hello from {index}")
        log.close()
    place = run_dir.node(0).bench / "00-chat"
    place.mkdir(parents=True)
    requests(place / "requests.jsonl", 24)
    return run_dir


def requests(path: Path, count: int, tokens: int = 20) -> None:
    rng = random.Random(7)
    with path.open("w", encoding="utf-8") as out:
        for index in range(count):
            ttft = rng.uniform(0.1, 0.3)
            out.write(
                json.dumps(
                    {
                        "index": index,
                        "begun": index * 0.05,
                        "ttft": ttft,
                        "e2el": ttft + rng.uniform(1, 2),
                        "itl": [0.01] * tokens,
                        "output_tokens": tokens,
                        "error": "",
                    }
                )
                + "\n"
            )


def record_at(run_dir: RunDir, index: int) -> Record:
    from steps.core.record.records import record_from
    from steps.core.record.rundir import read_json

    found = record_from(read_json(run_dir.node(index).record))
    assert found is not None
    return found
