"""A disk that becomes full while a run goes on: all is stopped, and there is a verdict."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from steps.core.node.noderun import NodeRun
from steps.core.record import events
from steps.core.record.events import EventLog
from steps.core.record.records import Cause
from steps.core.record.rundir import RESERVE, RunDir, read_json
from steps.core.system.guard import marked
from tests.core.cases import ROOT, SPLIT, plan_of
from tests.core.waiting import eventually
from tests.faults.rehearse import command

#: More than preflight asks for.
SIZE = "1100m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of the test's own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "none", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("to mount a file system needs root")
    try:
        yield place
    finally:
        eventually(lambda: not subprocess.run(["umount", str(place)], check=False).returncode)


def fill(out: IO[bytes]) -> None:
    """Take all the room that is left."""
    for piece in (1 << 20, 4096):
        with contextlib.suppress(OSError):
            while True:
                at = os.fstat(out.fileno()).st_size
                stat = os.statvfs(out.fileno())
                rest = max(stat.f_bfree * stat.f_frsize - piece, piece) if piece > 4096 else piece
                os.posix_fallocate(out.fileno(), at, rest)


def rehearse(disk: Path, lasting: bool) -> tuple[int, str]:
    """A rehearsal whose disk fills up while it loads.

    Args:
        lasting: whoever fills it takes what is given back, too.
    """
    over = threading.Event()
    argv = command("quickstart.yaml", disk / "run", "--load-seconds", "6")
    run = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    text = ""
    with run, (disk / "filler").open("wb") as out:
        assert run.stdout is not None
        for line in run.stdout:
            text += line
            if "load ..." in line:
                break
        fill(out)

        def again() -> None:
            while lasting and not over.wait(0.002):
                fill(out)

        filler = threading.Thread(target=again)
        filler.start()
        try:
            text += run.stdout.read()
            return run.wait(60), text
        finally:
            over.set()
            filler.join()


def test_a_full_disk_is_infra_with_a_verdict_and_leaves_nothing(disk: Path) -> None:
    code, text = rehearse(disk, lasting=False)
    assert code == 3, text
    verdict = read_json(disk / "run" / "verdict.json")
    assert verdict["verdict"] == "infra", text
    assert "is full" in verdict["cause"]["reason"]
    assert verdict["missing_records"] == []
    for index in (0, 1):
        assert not list(marked(f"{(disk / 'run').resolve()}:{index}"))
    assert not list(disk.glob(f"run/**/{RESERVE}"))


def test_a_disk_that_stays_full_is_said_on_the_console(disk: Path) -> None:
    code, text = rehearse(disk, lasting=True)
    assert code == 3, text
    assert "is full" in text or "No space left" in text
    assert "Traceback" not in text
    for index in (0, 1):
        assert not list(marked(f"{(disk / 'run').resolve()}:{index}"))


def test_events_are_kept_until_they_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "r", 0)
    with monkeypatch.context() as full:
        full.setattr(events, "appending", lambda _: Path("/dev/full").open("ab", 0))  # noqa: SIM115
        log.emit("note", text="first")
    assert log.trouble is not None
    log.emit("note", text="second")
    log.close()
    log.emit("note", text="too late")
    assert log.trouble is None
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert texts == ["first", "second"]


@pytest.mark.parametrize(
    ("verdict", "wanted"),
    [
        ("crash", "infra"),
        ("startup", "infra"),
        ("config", "config"),
        ("interrupted", "interrupted"),
    ],
)
def test_no_product_is_blamed_when_nothing_can_be_written(
    tmp_path: Path, verdict: str, wanted: str
) -> None:
    run = _node_run(tmp_path)
    run.events.trouble = OSError(30, "Read-only file system")
    run.add_cause(Cause("exit", verdict, "exited with code 1", process="server"))
    cause = run.own_causes()[0].cause
    assert cause.verdict == wanted
    assert ("Read-only file system" in cause.reason) == (wanted == "infra")
    assert "exited with code 1" in cause.reason


def test_with_room_a_product_is_blamed(tmp_path: Path) -> None:
    run = _node_run(tmp_path)
    run.add_cause(Cause("exit", "crash", "exited with code 1", process="server"))
    assert run.own_causes()[0].cause.verdict == "crash"


def _node_run(tmp_path: Path) -> NodeRun:
    return NodeRun(plan_of(SPLIT), 0, RunDir(tmp_path), EventLog(None, "run-1", 0))
