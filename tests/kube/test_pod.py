"""The first process of a pod, alone: it waits for its program, and heeds signals however many."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import fleet

PROGRAM = """\
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
pathlib.Path("../begun").touch()
while True:
    signal.pause()
"""


def first(root: Path) -> subprocess.Popen[str]:
    """The first process of a pod."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LWS_")}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-u", str(fleet.ROOT / "k8s" / "pod.py")],
        env={**env, "MULTINODE_ROOT": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lay(root: Path) -> None:
    """A bundle whose node program waits for SIGTERM and exits with 7."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        oom = (fleet.ROOT / "steps" / "core" / "system" / "oom.py").read_text()
        core = [(f"steps/{room}__init__.py", "") for room in ("", "core/", "core/system/")]
        for name, text in (*core, ("steps/core/system/oom.py", oom), ("steps/node.py", PROGRAM)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o600
            tar.addfile(member, io.BytesIO(text.encode()))
    start = {
        "run": "r",
        "parts": [{"path": "1/part", "sha256": hashlib.sha256(packed.getvalue()).hexdigest()}],
        "cluster": {"nodes": [{"index": 0, "address": "x-0.x.ns"}], "known": {}},
        "known": [],
        "arguments": [],
        "output": "events",
        "until": 0,
    }
    for part, name, content in (
        ("0", "start.json", json.dumps(start).encode()),
        ("0", "case.yaml", b""),
        ("1", "part", packed.getvalue()),
    ):
        (root / "bundle" / part).mkdir(parents=True, exist_ok=True)
        (root / "bundle" / part / name).write_bytes(content)


@contextlib.contextmanager
def pod(root: Path) -> Iterator[subprocess.Popen[str]]:
    """``pod.py``, whose node program has begun."""
    lay(root)
    process = first(root)
    try:
        fleet.await_((root / "work" / "begun").exists)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_ends_with_its_program_and_writes_how(tmp_path: Path) -> None:
    with pod(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the node program exited with code 7" in said
    assert json.loads((tmp_path / "work" / "done.json").read_text())["exit_code"] == 7


@pytest.mark.timeout(60)
def test_a_storm_of_dying_orphans_does_not_make_it_deaf(tmp_path: Path) -> None:
    """An engine that is killed leaves dozens of processes, which die at once, as our orphans."""
    with pod(tmp_path) as process:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            process.send_signal(signal.SIGCHLD)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
    assert json.loads((tmp_path / "work" / "done.json").read_text())["exit_code"] == 7


def test_a_sigterm_while_it_still_reads_what_to_do_ends_it_and_nothing_is_started(
    tmp_path: Path,
) -> None:
    lay(tmp_path)
    order = tmp_path / "bundle" / "0" / "start.json"
    text = order.read_text()
    order.unlink()
    os.mkfifo(order)
    process = first(tmp_path)
    try:
        with order.open("w") as out:  # opens once the other side reads
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            out.write(text)
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "told to stop before the node program began" in said
    assert not (tmp_path / "work" / "begun").exists()
