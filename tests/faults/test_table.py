"""Every row of the fault table, rehearsed for real."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.rehearse import left_of, rehearse
from tests.faults.table import ROWS, Row

#: One row of each kind of end has its report drawn.
DRAWN = {row.verdict: row for row in ROWS}.values()


def started(node: Path) -> list[str]:
    """The processes that a node began, as its own events tell."""
    events = [json.loads(line) for line in (node / "events.jsonl").read_text().splitlines()]
    return [event["process"] for event in events if event["what"] == "started"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_fault(row: Row, tmp_path: Path) -> None:
    drawn = row in DRAWN
    outcome = rehearse(row.case, tmp_path, "--fault", row.fault, *row.extra, draw=drawn)
    verdict = outcome.verdict
    cause = verdict["cause"] or {}
    told = f"{cause.get('reason')}\n{outcome.output[-3000:]}"
    assert verdict["verdict"] in row.verdict.split("|"), told
    assert outcome.code == verdict["exit_code"] == row.exit_code
    if row.node is not None:
        assert cause["node"] == row.node, told
    if row.process:
        assert cause["process"] == row.process, told
    if row.signal:
        assert cause["signal"] == row.signal, told
    if row.code is not None:
        assert cause["exit_code"] == row.code, told
    if row.verdict != "pass":
        assert cause["reason"]
        assert cause["seconds"] > 0
        assert cause["phase"]
    for node in outcome.plan["nodes"]:
        there = outcome.path / f"node-{node['index']}"
        assert (there / "events.jsonl").stat().st_size > 0
        assert (there / "record.json").exists() == (node["index"] not in row.silent), told
        logs = [there / f"{name}.log" for name in started(there)]
        assert all(log.exists() for log in logs), node["index"]
        # Before a fleet has answered, a death elsewhere may come before a node has started any.
        if cause.get("phase") in ("bench", "proof", "stop"):
            assert logs, node["index"]
    assert left_of(outcome, tmp_path) == []
    assert not drawn or not find_spec("matplotlib") or (outcome.path / "report.html").exists()
    progress = outcome.output.split("# ❌")[0].replace("    | Traceback", "")
    at = progress.find("Traceback")
    assert at < 0, progress[max(0, at - 1500) : at + 3000]
