"""Every row of the fault table, rehearsed for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rehearse import left_of, rehearse
from tests.faults.table import ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_fault(row: Row, tmp_path: Path) -> None:
    outcome = rehearse(row.case, tmp_path, "--fault", row.fault, *row.extra)
    verdict = outcome.verdict
    cause = verdict["cause"] or {}
    told = f"{cause.get('reason')}\n{outcome.output[-3000:]}"
    assert verdict["verdict"] == row.verdict, told
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
        if cause.get("phase") not in ("join", "preflight", "pool", None):
            logs = [there / f"{process['name']}.log" for process in node["processes"]]
            assert any(log.exists() for log in logs), node["index"]
    assert left_of(outcome, tmp_path) == []
    assert "Traceback" not in outcome.output.replace("    | Traceback", "").split("# ❌")[0]
