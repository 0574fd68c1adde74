"""Whole runs leave telemetry of every node: rehearsed, and on the tests' own engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from steps.core.record import outcome, telemetry
from steps.core.record.rundir import RunDir
from tests.faults.rehearse import Outcome, left_of
from tests.realpath import fleet


def counted(found: Outcome) -> dict[int, float]:
    """Requests that ended during the benchmarks, by node; every node's machine was looked at."""
    over = outcome.read(RunDir(found.path))
    for node in over.plan.nodes:
        tracks = telemetry.read(found.path / node.name / telemetry.NAME)
        assert len(tracks[telemetry.MACHINE].seen) >= 2, node.name
        assert tracks["server"].seen, node.name
    return {
        node.index: telemetry.figures(
            [e for e in over.engines if e.node == node], over.measured
        ).requests
        for node in over.plan.nodes
    }


def test_a_rehearsal(passed: Outcome) -> None:
    assert all(24 <= count <= 26 for count in counted(passed).values()), "24, and the probe's"
    summary = (passed.path / "summary.md").read_text()
    assert "## Where the time went" in summary
    assert "prefillers:" in summary
    assert left_of(passed, passed.path.parent) == []


@pytest.mark.parametrize("key", ["", "a-key-of-the-case"])
def test_the_real_path(key: str, tmp_path: Path) -> None:
    case = fleet.split(2)
    if key:
        case["env_common"]["VLLM_API_KEY"] = key
    found = fleet.local(tmp_path, case)
    assert found.code == 0, found.output
    assert all(6 <= count <= 8 for count in counted(found).values()), counted(found)
    assert "## Where the time went" in (found.path / "summary.md").read_text()
    for path in found.path.glob("node-*/*"):
        assert not key or path.is_dir() or key.encode() not in path.read_bytes(), path
