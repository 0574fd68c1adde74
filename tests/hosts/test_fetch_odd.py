"""Files of a host: an awkward one costs only itself, is named, and stays there."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci.backends.hosts import harvest
from ci.backends.hosts.harvest import Harvest
from steps.core.errors import InfraError
from steps.core.record.records import Artifact, to_dict
from steps.core.record.rundir import RunDir, write_json
from tests.ci import runs
from tests.core.cases import ROOT
from tests.core.records import records_of
from tests.kube.test_fetch_odd import GOOD, ODD, bomb, kept, packed

#: What an archive cannot have, and what depends on the order.
NOT_HERE = {"a NUL", "a lone surrogate", "a file against a directory"}


def fetched(place: Path, *archives: bytes) -> tuple[str, int]:
    """What fetching says, and how often it asked."""
    given = list(archives)
    remote = SimpleNamespace(
        connect=lambda tries: None,
        close=lambda: None,
        python=lambda *words, cwd: "",
        stream=lambda command: (
            SimpleNamespace(errors=lambda: b"", close=lambda: None),
            io.BufferedReader(io.BytesIO(given.pop(0))),  # type: ignore[arg-type]
        ),
    )
    session: Any = SimpleNamespace(
        request=SimpleNamespace(run_dir=RunDir(place).make()), host="host-a", remote=remote,
        reachable=True, let_go=lambda: None, started=True, place="/there", bundle="/there/bundle",
        index=0,
    )  # fmt: skip
    made = Harvest(session)
    try:
        made.fetch()
        said = ""
    except InfraError as error:
        said = error.message
    assert made._verb == ("retire" if said else "clean"), "what was not fetched must stay there"
    return said, len(archives) - len(given)


@pytest.mark.parametrize("what", sorted(set(ODD) - NOT_HERE))
def test_an_awkward_file_costs_only_itself(tmp_path: Path, what: str) -> None:
    name, why = ODD[what]
    said, asked = fetched(tmp_path / "run", packed({name: b"awkward", **GOOD}))
    found = kept(tmp_path / "run")
    assert asked == 1
    if what == "a directory against a file":
        assert "a.log" in said
        return
    assert {path: found.get(path) for path in GOOD} == GOOD
    assert not [path for path in found if ".new-" in path]
    if why is None:
        assert found[name] == b"awkward"
        assert not said
    else:
        assert why in said
        assert "/there/run" in said
        assert len(said) < 700


def test_reading_stops_at_the_size_in_the_record(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "kept").make()
    record = records_of(runs.plan_of())[0]
    assert record is not None
    artifacts = (Artifact("a.log", 3, sha256(b"one").hexdigest()),)
    write_json(run_dir.node(0).make().record, to_dict(replace(record, artifacts=artifacts)))
    told = run_dir.node(0).record.read_bytes()
    files = {"node-0/record.json": told, "node-0/a.log": bytes(9999), "node-0/b.log": b"x"}
    said, asked = fetched(tmp_path / "run", packed(files))
    assert "node-0/a.log: has 9,999 bytes, though it may have 3" in said
    assert asked == 1
    assert kept(tmp_path / "run") == {"node-0/record.json": told, "node-0/b.log": b"x"}


@pytest.mark.parametrize("listed", [True, False])
def test_a_bomb_ends_in_time(tmp_path: Path, listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvest, "FETCH_SECONDS", 1.0)
    monkeypatch.setattr(harvest, "TRIES", 1)
    if listed:
        monkeypatch.setattr(Harvest, "_limit", lambda self, name: 3)
    data = b"".join(itertools.islice(bomb("node-0/a.log", 1 << 40), 2000))
    began = time.monotonic()
    said, _ = fetched(tmp_path / "run", data)
    assert said
    assert time.monotonic() - began < 5.0
    assert not [path for path in kept(tmp_path / "run") if ".new-" in path]
    if listed:
        assert sum(map(len, kept(tmp_path / "run").values())) <= 3


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
        said, _ = fetched(tmp_path / str(number), packed({"node-0/a.log": b""}, kind))
        assert "node-0/a.log: is no regular file" in said
        assert not kept(tmp_path / str(number))


@pytest.mark.parametrize(
    "damage",
    [b"", b"x" * 4000, packed(GOOD)[:90], packed(GOOD)[:40] * 9],
    ids=["nothing", "no archive", "cut", "cut and again"],
)
def test_a_damaged_archive_is_asked_for_again(tmp_path: Path, damage: bytes) -> None:
    said, asked = fetched(tmp_path / "run", damage, packed(GOOD))
    assert (said, asked) == ("", 2)
    found = kept(tmp_path / "run")
    assert {path: found[path] for path in GOOD} == GOOD
    assert not [path for path in found if ".new-" in path]


def test_a_host_packs_what_it_can(tmp_path: Path) -> None:
    node = tmp_path / "run" / "node-0"
    node.mkdir(parents=True)
    (node / "a.log").write_text("a")
    (node / "record.json").write_text("{}")
    (node / "link").symlink_to("/etc/passwd")
    os.mkfifo(node / "pipe")
    (node / os.fsdecode(b"\xff\xfe")).write_text("odd")
    done = subprocess.run(
        [sys.executable, "-m", "steps.core.node.keeper", "pack", str(tmp_path)], cwd=ROOT,
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        found = {member.name: member.isreg() for member in archive}
    names = {name.removeprefix("node-0/"): regular for name, regular in found.items()}
    assert names == {
        "record.json": True, "a.log": True, "\udcff\udcfe": True, "link": False, "pipe": False,
    }  # fmt: skip
    assert next(iter(found)) == "node-0/record.json"
