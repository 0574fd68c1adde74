"""A load that goes on, on the tests' own engine: what is told of it, and a request that hangs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steps.core.record.events import Event, read_events
from tests.faults.rehearse import Outcome
from tests.realpath import fleet


def told(found: Outcome) -> list[Event]:
    events = read_events(found.path / "node-0" / "events.jsonl")
    return [event for event in events if event.what == "load"]


def load(**more: Any) -> dict[str, Any]:
    return {"chat": {**fleet.CHAT, "gates": ["success_ratio == 1"], **more}}


def test_a_load_of_a_split_fleet_is_told_by_side(tmp_path: Path) -> None:
    case = fleet.split(2, {1: "itl=0.3"}, benchmarks=load(num_prompts=6, max_out_len=8))
    found = fleet.local(tmp_path, case, "--bench", "smoke")
    assert found.code == 0, found.output
    rows = [event.fields["rows"] for event in told(found)]
    assert rows, found.output
    assert all(row[0].startswith("chat: ") and " of 6 done, " in row[0] for row in rows)
    assert all(
        [side.split(":")[0] for side in row[1:]] == ["prefillers", "decoders"] for row in rows
    )
    decoders = [row[2] for row in rows]
    assert any("2 running" in row for row in decoders), decoders
    assert any("tokens/s" in row and " 0 tokens/s" not in row for row in decoders), decoders
    assert any("TTFT" in row[0] and "in flight" in row[0] for row in rows)


@pytest.mark.parametrize(
    ("driver", "named"),
    [("smoke", "is stuck: nothing for"), ("aisbench", "1 of 6 requests are stuck: neither")],
)
def test_one_request_that_hangs_is_named_with_its_engine(
    driver: str, named: str, tmp_path: Path
) -> None:
    """The proxy, the probe and every other request are well: the budget of two hours would pass."""
    words = {1: "stick=4 itl=0.01"}
    case = fleet.split(
        2, words, benchmarks=load(num_prompts=6, max_out_len=8), timeouts={"request": 4}
    )
    found = fleet.local(tmp_path, case, "--bench", driver)
    assert found.code == 4, found.output
    cause = found.verdict["cause"]
    assert (cause["kind"], cause["verdict"], cause["phase"]) == ("stuck", "hang", "bench")
    assert named in cause["reason"] and cause["reason"].endswith("node-1 server has it"), cause
    assert (cause["node"], cause["process"]) == (1, "server")
    [result] = found.verdict["benchmarks"]
    assert result["status"] == "error" and not result["metrics"]
    if driver == "smoke":
        [place] = (found.path / "node-0" / "bench").glob("*/requests.jsonl")
        samples = [json.loads(line) for line in place.read_text().splitlines()]
        [hung] = [sample for sample in samples if sample["error"]]
        assert f"request {hung['index']} of 6" in cause["reason"]
        assert len(samples) == 6
