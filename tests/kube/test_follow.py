"""``invoke follow``: a run that was applied by hand, from its first line to its verdict."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from k8s.api import client

from . import fleet
from .conftest import QUICK
from .double import Image, KubeDouble

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(120)
Apply = Callable[..., str]


@pytest.fixture
def place(kube: KubeDouble, tmp_path: Path) -> fleet.Place:
    """A user of the double."""
    return fleet.Place(fleet.environment(kube), fleet.PROFILE, kube.namespace, tmp_path)


def rendered(place: fleet.Place, *options: str) -> tuple[str, Path]:
    """The run's name, and its manifests in a file."""
    user = place.directory / "user"
    words = (str(user / "case.yaml"), "--profile", str(user / "lab.yaml"), "--rehearse")
    made = place.tool("k8s.render", *words, *options)
    assert made.returncode == 0, made.stderr
    (user / "lws.yaml").write_text(made.stdout)
    name = [document["metadata"]["name"] for document in yaml.safe_load_all(made.stdout)][-1]
    return name, user / "lws.yaml"


def submit(place: fleet.Place, text: str) -> None:
    """Apply manifests as kubectl would."""
    api = place.api()
    kinds = {"Secret": "secrets", "ConfigMap": "configmaps", "Service": "services"}
    for document in yaml.safe_load_all(text):
        plural = kinds.get(document["kind"], "leaderworkersets")
        target = client.path(place.namespace, plural, document["metadata"]["name"])
        api.apply(target, document)


def kubectl(place: fleet.Place, *words: str) -> str:
    """What it says."""
    argv = ["kubectl", *words]
    done = subprocess.run(
        argv, env=place.env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def apply(place: fleet.Place) -> Apply:
    """Renders the case and applies it; the name of the run."""

    def made(*options: str) -> str:
        name, file = rendered(place, *options)
        submit(place, file.read_text())
        return name

    return made


def follow(place: fleet.Place, *words: str) -> subprocess.CompletedProcess[str]:
    return place.tool("invoke", "follow", "--on", "k8s", *words)


def test_it_prints_the_log_and_has_the_verdict_s_exit_code(
    place: fleet.Place, apply: Apply
) -> None:
    name, words = apply("--fault", "crash@1:load"), "verdict: startup: node 1 (worker) server"
    done = follow(place, "--name", name)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "node 0  load      started server" in done.stdout
    assert words in done.stdout
    assert f"invoke fetch --on k8s --namespace {place.namespace} --name {name}" in done.stdout
    assert "Traceback" not in done.stderr
    again = follow(place, "--name", name)
    assert (again.returncode, words in again.stdout) == (1, True), "it holds, so ask again"


def test_with_kubectl_alone_the_group_is_available_when_every_node_has_finished(
    tmp_path: Path,
) -> None:
    """The lines of docs/kubernetes.md; where kubectl is not installed, what they ask of the API."""
    with KubeDouble(tmp_path / "kube", timing=QUICK, tls=True) as kube:
        place = fleet.Place(fleet.environment(kube), fleet.PROFILE, kube.namespace, tmp_path)
        name, file = rendered(place)
        api, target = place.api(), client.path(kube.namespace, "leaderworkersets", name)

        def available() -> bool:
            conditions = (api.get(target).get("status") or {}).get("conditions") or []
            return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)

        if shutil.which("kubectl"):
            kubectl(place, "apply", "--server-side", "-f", str(file))
            assert not available()
            wait = ("--for=condition=Available", f"lws/{name}", "--timeout=60s")
            kubectl(place, "wait", "-n", kube.namespace, *wait)
            log = kubectl(place, "logs", f"{name}-0")
            done = kubectl(place, "exec", f"{name}-0", "--", "cat", "/multinode/work/done.json")
            assert json.loads(done)["verdict"] == "pass"
        else:
            submit(place, file.read_text())
            assert not available()
            fleet.await_(available, 60)
            lines = client.path(place.namespace, "pods", f"{name}-0", "log")
            log = b"\n".join(api.lines(lines, {}, 20.0, lambda: False)).decode()
        assert "verdict: pass" in log
        told = follow(place, "--name", name)
        assert (told.returncode, "verdict: pass" in told.stdout) == (0, True), told.stderr
        if shutil.which("kubectl"):
            kubectl(place, "delete", "-f", str(file), "--cascade=foreground")
            assert fleet.leftovers(kube) == []


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
