"""Events and the run directory: nothing torn, nothing lost, nothing left."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.core.errors import UsageError
from steps.core.record.events import RUNNER, Event, EventLog, console_line, read_events
from steps.core.record.rundir import (
    RunDir,
    new_run_id,
    point_latest,
    read_json,
    sha256_of,
    write_json,
    write_text,
)
from steps.core.redaction import MASK, Redactor

FIELDS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=5),
    st.text(max_size=20) | st.integers() | st.booleans() | st.lists(st.text(max_size=5)),
    max_size=3,
)


def test_a_number_of_any_sign_survives_its_line() -> None:
    for number in (10**24, -(10**24)):
        event = Event(12.5, "run", 1, "load", "note", {"a": number})
        assert Event.from_json(event.to_json()) == event


@given(FIELDS)
def test_an_event_survives_its_line(fields: dict[str, Any]) -> None:
    event = Event(12.5, "run", 1, "load", "note", fields)
    line = event.to_json()
    assert "\n" not in line
    assert Event.from_json(line) == event


@given(st.lists(FIELDS, max_size=5))
def test_events_survive_the_file(tmp_path_factory: Any, every: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    log = EventLog(path, "run", 0)
    for fields in every:
        log.emit("note", value=fields)
    log.close()
    assert [dict(e.fields)["value"] for e in read_events(path)] == every


@pytest.mark.parametrize(
    "line",
    [
        "", "x", "[]", "1", "null", "{}", '{"time": 1}', "[" * 100_000,
        '{"time": "x", "run": "r", "node": 0, "phase": "p", "what": "w"}',
        '{"time": 1, "run": "r", "node": "0", "phase": "p", "what": "w"}',
        '{"time": 1, "run": "r", "node": 0, "phase": null, "what": "w"}',
        '{"time": 1, "run": "r", "node": 0, "phase": "p", "wh',
    ],
)  # fmt: skip
def test_what_is_no_event_is_none(line: str) -> None:
    assert Event.from_json(line) is None


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = Event(1.0, "r", 0, "load", "note", {"text": "a\u2028b\x85c"}).to_json()
    path.write_text(f"{good}\n{good[:20]}\n{good}\n{good[:-1]}", encoding="utf-8")
    assert len(read_events(path)) == 2
    assert read_events(tmp_path / "absent") == []


def test_odd_text_and_closed_logs_do_not_raise(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "deep" / "events.jsonl", "r", 0)
    log.emit("note", text="\udcff\ud800")
    log.close()
    log.emit("note", text="after the end")
    log.close()
    assert len(read_events(tmp_path / "deep" / "events.jsonl")) == 1


def test_events_are_redacted_and_passed_on(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(tmp_path / "e", "r", RUNNER, Redactor(["s3cret-value"]), [heard.append])
    log.phase = "bench"
    log.emit("note", text="it is s3cret-value", token="abc")
    log.close()
    assert dict(heard[0].fields) == {"text": f"it is {MASK}", "token": MASK}
    assert (heard[0].node, heard[0].phase) == (RUNNER, "bench")
    assert "s3cret" not in (tmp_path / "e").read_text()


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e", "r", 0)

    def write() -> None:
        for _ in range(100):
            log.emit("note", text="x" * 500)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(read_events(tmp_path / "e")) == 400


def test_lines_for_people() -> None:
    for what in ("phase", "started", "exited", "waiting", "cause", "ready", "verdict", "unknown"):
        event = Event(1000.0, "r", 0, "load", what, {"state": "begin", "text": "T", "seconds": 1})
        line = console_line(event, 990.0)
        assert "\n" not in line
        assert not line or ("+10.0s" in line and "load" in line and "node 0" in line)
    assert "runner" in console_line(Event(1.0, "r", RUNNER, "s", "note", {"text": "hi"}), 0.0)


# The run directory


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_json(path, {"a": "é\u2028\udcff"})
    assert read_json(path)["a"].startswith("é")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path)["a"].startswith("é")
    write_text(path, "\ud800")
    assert path.read_bytes() == b"\\ud800"
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "processes.json"
    write_json(path, ["x"] * 10)
    over = threading.Event()

    def write() -> None:
        for size in range(150):
            write_json(path, ["x" * 1000] * size)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        assert read_json(path) is not None
    writer.join()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").mkdir()
    with pytest.raises(OSError, match=r".+"):
        write_text(tmp_path / "verdict.json", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["verdict.json"]


def test_read_json_of_what_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent") is None
    (tmp_path / "torn").write_text('{"a": ')
    assert read_json(tmp_path / "torn") is None
    assert read_json(tmp_path) is None


def test_latest_points_at_the_newest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        point_latest(RunDir(tmp_path / name).make().path)
    assert (tmp_path / "latest").readlink() == Path("two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "one", "two"]
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o700


def test_a_directory_named_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "mine").touch()
    point_latest(RunDir(tmp_path / "one").make().path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "one"]
    assert (tmp_path / "latest" / "mine").exists()


def test_a_run_directory_that_cannot_be_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="--run-dir"):
            RunDir(path).make()


def test_run_ids_sort_by_time_and_differ() -> None:
    assert new_run_id(0) < new_run_id(10**9)
    assert len({new_run_id(0) for _ in range(50)}) == 50


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "a") == digest
    assert json.dumps(digest)
