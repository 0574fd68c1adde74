"""Fetching: resumed where it broke, verified, kept in part when time ends."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from k8s import fetch
from k8s.api import client
from k8s.api.client import Api, ApiError, Exec

from . import fleet
from .double import KubeDouble

pytest.importorskip("kubernetes")

WRITE = """
import hashlib, json, os, pathlib, random, time
work = pathlib.Path("/multinode/work"); run = work / "run" / "node-0"; run.mkdir(parents=True)
data = random.Random(1).randbytes(3 << 20)
(run / "server.log").write_bytes(data)
(run / "small.txt").write_text("small")
digest = os.environ.get("DIGEST") or hashlib.sha256(data).hexdigest()
row = {"path": "server.log", "size": len(data), "sha256": digest}
(run / "record.json").write_text(json.dumps({"artifacts": [row]}))
(work / "run" / "secret").write_text("not asked for")
(work / "done.json").write_text('{"exit_code": 0}')
time.sleep(3600)
"""


def holding(kube: KubeDouble, digest: str = "") -> None:
    """A pod that holds files, as one of ours does at its end."""
    script = (fleet.ROOT / "k8s" / "pod.py").read_text()
    meta = {"name": "code"}
    kube.create(
        {"kind": "ConfigMap", "apiVersion": "v1", "metadata": meta, "data": {"pod.py": script}}
    )
    done = ["test", "-f", "/multinode/work/done.json"]
    container = {
        "name": "node",
        "image": "registry.local/py:1",
        "command": ["python3", "-c", WRITE],
        "env": [{"name": "DIGEST", "value": digest}],
        "readinessProbe": {"exec": {"command": done}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "work", "mountPath": "/multinode/work"},
            {"name": "code", "mountPath": "/multinode/bundle/0"},
        ],
    }
    volumes = [{"name": "work", "emptyDir": {}}, {"name": "code", "configMap": {"name": "code"}}]
    spec = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 1}
    kube.create({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x-0"}, "spec": spec})

    def ready() -> bool:
        return any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for pod in kube.pods()
            for condition in pod["status"].get("conditions") or []
        )

    fleet.await_(ready, 40)


def connected(kube: KubeDouble) -> Api:
    with mock.patch.dict(os.environ, fleet.environment(kube), clear=True):
        return client.connect()


class Breaking(Api):
    """Transfers that break after so many bytes, so many times."""

    breaks = 3
    after = 800_000
    sent: list[list[str]]

    def exec(self, *where: Any, **more: Any) -> Exec:
        command = super().exec(*where, **more)
        argv = where[3]
        self.sent.append(argv)
        if "send" in argv and self.breaks:
            self.breaks -= 1
            read, seen = command.read, [0]

            def torn() -> bytes:
                data = read()
                seen[0] += len(data)
                if seen[0] > self.after:
                    raise ApiError(0, "", "the connection of the command broke")
                return data

            command.read = torn  # type: ignore[method-assign]
        return command


def run(api: Api, directory: Path, seconds: float = 60.0) -> fetch.Fetched:
    deadline = time.monotonic() + seconds
    made = fetch.Fetch(api, "rec", "x-0", 0, directory, "python3", lambda: deadline)
    return made.run()


def test_a_transfer_that_breaks_goes_on_where_it_broke(kube: KubeDouble, tmp_path: Path) -> None:
    holding(kube)
    api = connected(kube)
    api.__class__ = Breaking
    api.sent = []  # type: ignore[attr-defined]
    result = run(api, tmp_path)
    assert result.problems == ["secret: is outside of the node's own directory"]
    data = (tmp_path / "node-0" / "server.log").read_bytes()
    record = (tmp_path / "node-0" / "record.json").read_text()
    assert hashlib.sha256(data).hexdigest() in record
    sends = [argv[5:] for argv in api.sent if "send" in argv]  # type: ignore[attr-defined]
    offsets = [int(words[1]) for words in sends if len(words) > 1]
    assert len(sends) == 4
    assert offsets == sorted(offsets)
    assert offsets[-1] > 1_000_000, "what had come was not sent again"
    assert result.done == {"exit_code": 0}


def test_only_the_nodes_own_files_are_taken(kube: KubeDouble, tmp_path: Path) -> None:
    holding(kube)
    problems = run(connected(kube), tmp_path).problems
    assert problems == ["secret: is outside of the node's own directory"]
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    names = ("done.json", "record.json", "server.log", "small.txt")
    assert [name for name in found if name.startswith("node-0/")] == [
        f"node-0/{name}" for name in names
    ]
    assert not (tmp_path / "secret").exists()


def test_a_file_that_is_not_the_records_is_kept_and_called_so(
    kube: KubeDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TRIES", 2)
    holding(kube, digest="0" * 64)
    result = run(connected(kube), tmp_path)
    assert "server.log: was not verified" in result.problems[1]
    assert (tmp_path / "node-0" / "server.log.partial").stat().st_size == 3 << 20
    assert (tmp_path / "node-0" / "small.txt").read_text() == "small"


def test_no_time_left_says_so(kube: KubeDouble, tmp_path: Path) -> None:
    holding(kube)
    result = run(connected(kube), tmp_path, -1.0)
    assert result.problems == ["no time was left"]


def test_a_pod_that_is_not_there_is_no_traceback(kube: KubeDouble, tmp_path: Path) -> None:
    api = connected(kube)
    result = run(api, tmp_path, 2.0)
    assert "not found" in result.problems[0]


def test_an_api_server_that_is_away_costs_no_files(
    kube: KubeDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than all tries take; what follows is the deletion of the files."""
    monkeypatch.setattr(fetch, "TRIES", 2)
    holding(kube)
    api = connected(kube)
    away = threading.Thread(target=kube.restart_api, kwargs={"downtime": 3.0})
    away.start()
    try:
        fleet.await_(lambda: not _answers(api))
        assert away.is_alive(), "it is away"
        found = run(api, tmp_path)
    finally:
        away.join()
    assert len(found.problems) == 1, found.problems


def _answers(api: Api) -> bool:
    try:
        api.ask("GET", "/version", patience=0.0)
    except ApiError:
        return False
    return True
