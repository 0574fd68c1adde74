"""A run's files are its owner's alone, while it lives and after; no links are followed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from steps.byhand import fetch
from steps.core.errors import UsageError
from steps.core.node import start
from steps.core.node.wishes import Wishes
from steps.core.record import rundir
from steps.core.record.events import EventLog
from steps.core.record.rundir import RunDir, write_text
from tests.ci import runs
from tests.core.cases import ROOT
from tests.faults.rehearse import command, environment

NOBODY = 54321
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


def open_to_others(root: Path) -> set[str]:
    """What others may read, write or enter, and what its owner may not."""
    found = set()
    for path in (root, *root.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        least = 0o700 if stat.S_ISDIR(mode) else 0o600
        if not stat.S_ISLNK(mode) and (mode & 0o077 or mode & least != least):
            found.add(f"{path.relative_to(root)} {stat.S_IMODE(mode):04o}")
    return found


@pytest.mark.parametrize("umask", ["000", "777"])
def test_a_run_is_its_owners_while_it_lives_and_after(tmp_path: Path, umask: str) -> None:
    run = tmp_path / "runs" / "run"
    words = command("quickstart.yaml", run, "--verbose")
    env = environment(tmp_path)
    (tmp_path / "history").mkdir()
    child = subprocess.Popen(
        ["sh", "-c", 'umask "$0"; exec "$@"', umask, *words], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**env, "MULTINODE_HISTORY": str(tmp_path / "history")},
    )  # fmt: skip
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.update(open_to_others(run) if run.exists() else ())

    watcher = threading.Thread(target=look)
    watcher.start()
    said, _ = child.communicate(timeout=120)
    over.set()
    watcher.join()
    assert child.returncode == 0, said.decode()
    assert not seen | open_to_others(run)
    kept = list((tmp_path / "history").rglob("*"))
    assert kept
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 for path in kept)


def test_a_directory_that_is_there_is_tightened_or_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    assert stat.S_IMODE(RunDir(empty).make().path.stat().st_mode) == 0o700
    used = tmp_path / "used"
    used.mkdir()
    used.chmod(0o755)
    (used / "file").touch()
    with pytest.raises(UsageError, match="others") as told:
        RunDir(used).make()
    assert "chmod 700" in told.value.hint
    assert stat.S_IMODE(used.stat().st_mode) == 0o755
    used.chmod(0o700)
    RunDir(used).make().make()


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    with pytest.raises(UsageError, match="another user"):
        RunDir(theirs).make()


@pytest.mark.parametrize(
    "name", ["plan.json", "events.jsonl", ".reserve", "node-0", "node-0/node.log", "node-1/x.log"]
)
def test_links_in_a_run_directory_are_not_followed(tmp_path: Path, name: str) -> None:
    run, target = tmp_path / "run", tmp_path / "precious"
    (run / name).parent.mkdir(mode=0o700, parents=True)
    run.chmod(0o700)
    if name == "node-0":
        target.mkdir()
    else:
        target.write_text("precious")
    (run / name).symlink_to(target)
    with pytest.raises(UsageError, match="symbolic link"):
        RunDir(run).make()
    assert target.is_dir() or target.read_text() == "precious"


def test_a_link_that_comes_later_is_not_followed(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run").make()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("events.jsonl", ".reserve", "plan.json"):
        (run_dir.path / name).symlink_to(precious)
    log = EventLog(None, "run", 0)
    log._path = run_dir.events
    log.emit("note", text="x")
    assert log.trouble is not None
    run_dir.reserve()
    write_text(run_dir.plan, "{}")
    assert run_dir.plan.read_text() == "{}"
    with pytest.raises(OSError, match="symbolic"):
        rundir.appending(run_dir.events)
    (run_dir.path / "node-0").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="symbolic link"):
        run_dir.node(0).make()
    assert precious.read_text() == "precious"


def test_names_of_any_length_are_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\N{ROCKET}" * 63, ".new-1", "a\nb"):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_brought_from_another_host_is_files_for_their_owner(tmp_path: Path) -> None:
    here, there = (runs.make(tmp_path / name) for name in ("here", "there"))
    node = there.node(1).path
    (node / "link").symlink_to("/etc/passwd")
    (node / "folder").symlink_to("/etc")
    os.mkfifo(node / "pipe")
    (node / "open.log").write_text("x")
    (node / "open.log").chmod(0o644)
    assert 1 in fetch.run(here, there)
    assert not open_to_others(here.path)
    names = {path.name for path in here.node(1).path.iterdir()}
    assert "open.log" in names
    assert not names & {"link", "folder", "pipe"}
    here.make()


@as_root
def test_a_token_file_of_another_owner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a-secret-that-is-long-enough")
    path.chmod(0o600)
    assert start._token(Wishes(token_file=str(path))) == "a-secret-that-is-long-enough"
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(UsageError, match="another user"):
        start._token(Wishes(token_file=str(path)))
    assert start._token(Wishes(token_file=str(path), bound=True))


def test_manifests_with_the_token_are_for_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "lws.yaml"
    words = ["-m", "k8s.render", "quickstart.yaml", "--profile", "cpu", "--output", str(path)]
    done = subprocess.run(
        [sys.executable, *words, "--rehearse"], cwd=ROOT,
        env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
