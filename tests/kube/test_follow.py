"""``invoke follow``: a run that was applied by hand, from its first line to its verdict."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from k8s.api import client

from . import fleet
from .double import Image, KubeDouble

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(120)
Apply = Callable[..., str]


@pytest.fixture
def place(kube: KubeDouble, tmp_path: Path) -> fleet.Place:
    """A user of the double."""
    return fleet.Place(fleet.environment(kube), fleet.PROFILE, kube.namespace, tmp_path)


@pytest.fixture
def apply(place: fleet.Place) -> Apply:
    """Renders the case and applies it, as kubectl would; the name of the run."""

    def made(*options: str) -> str:
        user = place.directory / "user"
        words = (str(user / "case.yaml"), "--profile", str(user / "lab.yaml"), "--rehearse")
        text = place.tool("k8s.render", *words, *options)
        assert text.returncode == 0, text.stderr
        api, name = place.api(), ""
        kinds = {"Secret": "secrets", "ConfigMap": "configmaps", "Service": "services"}
        for document in yaml.safe_load_all(text.stdout):
            plural = kinds.get(document["kind"], "leaderworkersets")
            name = document["metadata"]["name"]
            api.apply(client.path(place.namespace, plural, name), document)
        return name

    return made


def follow(place: fleet.Place, *words: str) -> subprocess.CompletedProcess[str]:
    return place.tool("invoke", "follow", "--on", "k8s", *words)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 0, "verdict: pass"),
        (["--fault", "crash@1:load"], 1, "verdict: startup: node 1 (worker) server"),
    ],
    ids=["pass", "fault"],
)
def test_it_prints_the_log_and_has_the_verdict_s_exit_code(
    place: fleet.Place, apply: Apply, options: list[str], code: int, words: str
) -> None:
    name = apply(*options)
    done = follow(place, "--name", name)
    assert done.returncode == code, done.stdout + done.stderr
    assert "node 0  load      started server" in done.stdout
    assert words in done.stdout
    assert f"invoke fetch --on k8s --namespace {place.namespace} --name {name}" in done.stdout
    assert "Traceback" not in done.stderr
    again = follow(place, "--name", name)
    assert (again.returncode, words in again.stdout) == (code, True), "it holds, so ask again"


def test_the_group_is_available_when_every_node_has_finished(
    place: fleet.Place, apply: Apply
) -> None:
    """What ``kubectl wait --for=condition=Available lws/NAME`` waits for."""
    name = apply()
    target = client.path(place.namespace, "leaderworkersets", name)
    api = place.api()

    def available() -> bool:
        conditions = (api.get(target).get("status") or {}).get("conditions") or []
        return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)

    assert not available()
    fleet.await_(available, 60)
    log = client.path(place.namespace, "pods", f"{name}-0", "log")
    lines = [line.decode() for line in api.lines(log, {}, 20.0, lambda: False)]
    assert any(line.startswith("verdict: pass") or "verdict: pass" in line for line in lines)


def test_what_can_never_start_ends_it(kube: KubeDouble, place: fleet.Place, apply: Apply) -> None:
    kube.images["registry.local/py:1"] = Image(False, "not found: py:1", pull_seconds=8)
    name = apply()
    done = follow(place, "--name", name)
    assert done.returncode == 3, done.stdout
    assert "cannot start: ErrImagePull" in done.stderr
    assert "waiting for node 0, 1" in done.stdout
    assert f"kubectl delete -n {place.namespace} lws/{name}" in done.stdout


def test_a_leader_that_is_killed_ends_it(
    kube: KubeDouble, place: fleet.Place, apply: Apply
) -> None:
    name = apply("--load-seconds", "20")
    argv = [sys.executable, "-m", "k8s.follow", "--name", name]
    with subprocess.Popen(
        argv, cwd=fleet.ROOT, env=place.env, text=True, stdout=-1, stderr=-1
    ) as popen:
        assert popen.stdout is not None
        for line in popen.stdout:
            if "started server" in line:
                break
        kube.signal(f"{name}-0", 9)
        out, errors = popen.communicate(timeout=40)
    assert popen.returncode == 3, out + errors
    assert "ended with exit code 137" in errors


def test_an_interrupt_ends_only_the_following(place: fleet.Place, apply: Apply) -> None:
    name = apply("--load-seconds", "20")
    argv = [sys.executable, "-m", "k8s.follow", "--name", name]
    with subprocess.Popen(
        argv, cwd=fleet.ROOT, env=place.env, text=True, stdout=-1, stderr=-1
    ) as popen:
        assert popen.stdout is not None
        for line in popen.stdout:
            if "started server" in line:
                break
        popen.send_signal(signal.SIGINT)
        out, errors = popen.communicate(timeout=20)
    assert popen.returncode == 130, out + errors
    assert "the run goes on" in out + errors
    assert len(place.items("pods")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "mn-none"), "there is no such LeaderWorkerSet in the namespace rec"),
        (("--name", "x", "--on", "local"), "--on: found 'local', expected k8s"),
    ],
)
def test_a_wrong_command(place: fleet.Place, words: tuple[str, ...], said: str) -> None:
    done = place.tool("invoke", "follow", *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
