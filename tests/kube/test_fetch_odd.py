"""An awkward file of a pod costs only itself and is named; reading stops where it was listed."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from k8s import fetch, harvest
from steps.core import foreign
from steps.core.record import arrivals
from steps.core.record.rundir import RunDir
from tests.core.cases import ROOT

GOOD = {"node-0/a.log": b"one", "node-0/z/b.log": b"two" * 1000, "node-0/record.json": b"{}"}


class Command:
    """What a pod sends, in pieces."""

    code, errors = 0, b""

    def __init__(self, content: Iterator[bytes]) -> None:
        self.content = content

    def read(self) -> bytes:
        return next(self.content, b"")

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Pod:
    """An API with one pod: its listing as text, its files as (name, size, content)."""

    def __init__(self, *lines: str, files: dict[str, bytes] | None = None, raw: Any = None) -> None:
        self.files = {**GOOD, **(files or {})}
        listed = [entry(name, data) for name, data in self.files.items()]
        self.listing = "\n".join([*lines, *listed])
        self.raw = raw
        self.sent: list[list[str]] = []

    def exec(self, *where: Any) -> Command:
        words = where[3][4:]
        self.sent.append(words)
        for word in words:
            word.encode()
        listed = [] if words[1:] else [self.listing.encode() + b"\0"]
        archive = pieces(packed(self.files)) if self.raw is None else self.raw()
        return Command(itertools.chain(listed, archive))


def entry(name: Any, data: bytes = b"", **more: Any) -> str:
    row = {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **more}
    return json.dumps(row)


def packed(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), 1)


def pieces(data: bytes) -> Iterator[bytes]:
    yield from (data[at : at + 30_000] for at in range(0, len(data), 30_000))


def taken(pod: Pod, place: Path, seconds: float = 20.0) -> fetch.Fetched:
    deadline = time.monotonic() + seconds
    api: Any = pod
    found = fetch.everything(api, "ns", {0: "x-0"}, place, "python3", lambda: deadline)
    return found[0]


def kept(place: Path) -> dict[str, bytes]:
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


LONG = "node-0/" + "x" * 253
ODD = {
    "a name of 253 bytes": (LONG, None),
    "a name of 255 bytes": (LONG + "yy", None),
    "a name that is too long": (LONG + "yyy", "File name too long"),
    "a name of 4000 bytes": ("node-0/" + "d/" * 2000 + "x", "nested too deeply"),
    "a file against a directory": ("node-0/z", "Is a directory"),
    "a directory against a file": ("node-0/a.log/inside", "Not a directory|File exists"),
    "a NUL": ("node-0/a\0b", "no file can have this name"),
    "no name": ("", "no file can have this name"),
    "a dot": ("node-0/./a.log", "no file can have this name"),
    "upwards": ("node-0/../../up", "no file can have this name"),
    "absolute": ("/etc/passwd", "no file can have this name"),
    "a lone surrogate": ("node-0/\ud800", "no file can have this name"),
    "of another encoding": ("node-0/\udcff\udcfe", None),
    "a sequence": ("node-0/\x1b]0;t\x07\n::add-mask::x", None),
    "elsewhere": ("elsewhere/x", "outside of the node's own directory"),
    "the directory itself": ("node-0", "outside of the node's own directory"),
    "an option": ("node-0/--", None),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("first", [True, False])
def test_an_awkward_file_costs_only_itself(tmp_path: Path, what: str, first: bool) -> None:
    name, why = ODD[what]
    pod = Pod(files=None)
    content = b"awkward"
    pod.files = {name: content, **GOOD} if first else {**GOOD, name: content}
    pod.listing = "\n".join(entry(each, data) for each, data in pod.files.items())
    good = {path: data for path, data in pod.files.items() if path == name or path in GOOD}
    if "\0" in name or "\ud800" in name:
        pod.files.pop(name)
    result = taken(pod, tmp_path)
    found = kept(tmp_path)
    if what in ("a file against a directory", "a directory against a file"):
        # Whichever comes first has the place.
        assert len(result.problems) == 1
        assert sum(found.get(path) == data for path, data in good.items()) == 3
    elif why is None:
        assert not result.problems
        assert found[name] == content
    else:
        assert len(result.problems) == 1, result.problems
        assert why in result.problems[0]
        assert {path: found.get(path) for path in GOOD} == GOOD
    assert all("\n" not in problem and len(problem) < 400 for problem in result.problems)
    assert not [path for path in found if path.startswith("node-0/.new-")]
    assert not (tmp_path.parent / "up").exists()


@pytest.mark.parametrize(
    "line",
    [
        "", "no json", "[]", "7", '{"path": 3, "size": 1, "sha256": ""}', "{" * 5000,
        '{"path": "node-0/q", "size": "9", "sha256": ""}', '{"a":' * 3000,
        '{"path": "node-0/q", "size": -1, "sha256": ""}',
        '{"path": "node-0/q", "size": 1.5, "sha256": ""}',
        '{"path": "node-0/q", "size": 1e999, "sha256": ""}',
        '{"path": "node-0/q", "size": true, "sha256": ""}',
        '{"path": "node-0/q", "size": null, "sha256": ""}',
        '{"path": "node-0/q", "size": 1, "sha256": 5}', '{"path": ["node-0/q"], "size": 1}',
        '{"path": "node-0/q", "size": 1}', "x" * 100_000, "\x1b]0;t\x07::add-mask::x",
        entry("node-0/link", odd="is a symbolic link, and is not followed"),
    ],
    ids=lambda line: line[:30] or "empty",
)  # fmt: skip
def test_a_line_of_the_listing_costs_only_itself(tmp_path: Path, line: str) -> None:
    result = taken(Pod(line), tmp_path)
    assert {name: kept(tmp_path).get(name) for name in GOOD} == GOOD
    assert len(result.problems) == 1, "nothing goes unsaid"
    assert len(result.problems[0]) < 400
    assert foreign.line(result.problems[0]) == result.problems[0]


def test_two_files_of_one_place(tmp_path: Path) -> None:
    result = taken(Pod(files={"done.json": b"b", "node-0/done.json": b"c"}), tmp_path)
    assert kept(tmp_path)["node-0/done.json"] == b"b"
    assert len(result.problems) == 1
    assert "place" in result.problems[0]


def test_what_is_no_file_in_the_archive_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TRIES", 1)
    bad = {"node-0/a.log": b""}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        result = taken(Pod(raw=lambda kind=kind: pieces(packed(bad, kind))), tmp_path)
        assert len(result.problems) == 3
        assert not kept(tmp_path)


def bomb(name: str, claimed: int) -> Iterator[bytes]:
    """A member of so many zeros, which come as quickly as they are asked for."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    member = tarfile.TarInfo(name)
    member.size = claimed
    yield packer.compress(member.tobuf(tarfile.PAX_FORMAT)) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(1 << 22)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(0, claimed, 1 << 22):
        yield zeros


@pytest.mark.parametrize("name", ["node-0/a.log", "node-0/unlisted"])
def test_reading_stops_at_the_listed_size(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TRIES", 1)
    pod = Pod(raw=lambda: bomb(name, 1 << 40))
    began = time.monotonic()
    result = taken(pod, tmp_path, 30.0)
    assert len(result.problems) == 3
    assert any("more came than had been listed" in problem for problem in result.problems)
    assert sum(map(len, kept(tmp_path).values())) <= 3
    assert time.monotonic() - began < 15
    assert len(pod.sent) == 1


def test_the_deadline_holds_whatever_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.core.record.arrivals.SLACK", 1 << 50)
    monkeypatch.setattr(fetch, "SLACK", 1 << 50)
    began = time.monotonic()
    result = taken(Pod(raw=lambda: bomb("node-0/a.log", 1 << 40)), tmp_path, 1.0)
    assert time.monotonic() - began < 3.0
    assert "no time was left" in result.problems[0]


@pytest.mark.parametrize("damage", ["cut", "noise", "no gzip", "empty"])
def test_a_damaged_archive_is_no_traceback(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TRIES", 1)
    whole = packed(GOOD)
    data = {
        "cut": whole[:90],
        "noise": whole[:40] + os.urandom(400),
        "no gzip": b"x" * 4000,
        "empty": b"",
    }[damage]
    result = taken(Pod(raw=lambda: pieces(data)), tmp_path)
    assert len(result.problems) >= 2
    assert not [path for path in kept(tmp_path) if ".new-" in path]


def test_a_failure_of_ours_names_the_files_too(tmp_path: Path) -> None:
    pod = Pod()
    pod.exec = lambda *_: (_ for _ in ()).throw(AssertionError("ours"))  # type: ignore[method-assign]
    assert "ours" in taken(pod, tmp_path).problems[0]


@pytest.mark.parametrize(
    ("content", "code", "why"),
    [
        ([b"Traceback"], 2, "listing failed: Traceback"),
        ([], 127, "listing failed: no such program"),
        (itertools.repeat(b"x" * (1 << 20)), -1, "listing failed: xxx"),
    ],
    ids=["an error", "nothing", "no end"],
)
def test_a_list_that_does_not_come_is_said_once(
    tmp_path: Path, content: Any, code: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TRIES", 1)
    monkeypatch.setattr(fetch, "_AWAY", ())
    monkeypatch.setattr("k8s.api.client.OUTPUT_LIMIT", 4 << 20)
    pod, command = Pod(), Command(iter(content))
    command.code, command.errors = code, b"no such program"
    pod.exec = lambda *_: command  # type: ignore[method-assign]
    (problem,) = taken(pod, tmp_path).problems
    assert why in problem
    assert len(problem) < 400


def test_one_command_waits_for_the_end_lists_and_sends(tmp_path: Path) -> None:
    """The one that finds the program still at work is asked again, without a pause."""
    pod = Pod()
    ready, asked = pod.exec, []

    def late(*where: Any) -> Command:
        asked.append(where[3][4])
        if len(asked) > 2:
            return ready(*where[:3], where[3][:5])
        runs = Command(iter(()))
        runs.code = 1
        return runs

    pod.exec = late  # type: ignore[method-assign]
    api: Any = pod
    deadline = time.monotonic() + 20
    began = time.monotonic()
    made = fetch.Fetch(*(api, "ns", "x-0", 0, tmp_path, "python3"), lambda: deadline, lambda: 10.0)
    assert made.run().problems == []
    assert time.monotonic() - began < 0.5
    assert asked == ["wait"] * 3
    assert {name: kept(tmp_path).get(name) for name in GOOD} == GOOD


def test_every_lost_file_is_named_before_it_is_deleted(tmp_path: Path) -> None:
    said: list[str] = []
    made: Any = harvest.Harvest.__new__(harvest.Harvest)
    made.events = SimpleNamespace(emit=lambda what, text: said.append(text))
    made.request = SimpleNamespace(run_dir=RunDir(tmp_path / "run").make())
    for count in (2, 700):
        made._name_lost(fetch.Fetched(0, problems=[f"file-{n}: gone" for n in range(count)]))
    assert len(said) == 2 + 6
    assert "700 files" in said[-1]
    lines = (tmp_path / "run" / "node-0" / "not-fetched.log").read_text().splitlines()
    assert len(lines) == 700


def test_a_full_disk_here_costs_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = arrivals.Part("a", 9, tmp_path / "a")
    monkeypatch.setattr(part, "_open", lambda begin: io.FileIO("/dev/full", "w"))
    assert part.take(lambda size: b"x" * size) == 0
    assert part.lost == "No space left on device"


def test_a_pod_lists_what_does_not_travel(tmp_path: Path) -> None:
    node = tmp_path / "work" / "run" / "node-0"
    node.mkdir(parents=True)
    (node / "a.log").write_text("a")
    (node / "link").symlink_to("/etc/passwd")
    (node / "there").symlink_to("/etc")
    os.mkfifo(node / "pipe")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "k8s" / "pod.py"), "send"],
        env={"MULTINODE_ROOT": str(tmp_path)}, capture_output=True, check=True,
    )  # fmt: skip
    listed, _, archive = done.stdout.partition(b"\0")
    rows = {row["path"]: row.get("odd", "") for row in map(json.loads, listed.splitlines())}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        assert tar.getnames() == ["node-0/a.log"]
    assert set(rows) == {f"node-0/{name}" for name in ("a.log", "link", "there", "pipe")}
    assert not rows.pop("node-0/a.log")
    assert all(rows.values())
