"""What must hold on every cluster: on the double, and with ``nox -s e2e_k8s`` on a real one."""

from __future__ import annotations

import signal
import time

import pytest
import yaml

from . import fleet

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(600)


def test_a_run_passes_and_leaves_nothing(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--real", default=False):
        passed = request.getfixturevalue("passed")
        assert (passed.done.code, passed.left) == (0, []), passed.done.text
        return
    place = request.getfixturevalue("place")
    with place.start() as started:
        done = started.finish(300)
    assert (done.code, done.verdict["verdict"]) == (0, "pass"), done.text
    assert place.left() == []


def test_a_run_is_replayed_with_its_profile_wherever_that_came_from(place: fleet.Place) -> None:
    with place.start("--fault", "crash@1:load") as started:
        first = started.finish(300)
    assert (first.code, first.verdict["cause"]["node"]) == (1, 1), first.text
    assert place.left() == []
    (place.directory / "user" / "lab.yaml").unlink()
    again = place.directory / "again"
    done = place.tool("ci.replay", str(first.run_dir), "--run-dir", str(again), given=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The verdict is the same: startup" in done.stdout
    assert "The plan is the same" in done.stdout, done.stdout[-2000:]
    assert place.left() == []


def test_an_image_that_is_not_there(place: fleet.Place) -> None:
    lines = [line for line in place.profile.splitlines() if not line.startswith("image:")]
    profile = "\n".join(["image: registry.invalid/none:1!", *lines]) + "\n"
    with place.start(profile=profile) as started:
        done = started.finish(300)
    assert (done.code, "cannot start" in done.reason) == (3, True), done.text
    assert place.left() == []


def test_an_interrupt_leaves_files_and_nothing_else(place: fleet.Place) -> None:
    with place.start("--load-seconds", "15") as started:
        started.until("started server", 200)
        started.signal(signal.SIGTERM)
        done = started.finish(200)
    assert done.code == 130, done.text
    assert (done.run_dir / "node-1" / "record.json").exists()
    assert place.left() == []


def test_the_janitor_removes_what_a_killed_runner_left(place: fleet.Place) -> None:
    with place.start("--load-seconds", "15") as started:
        started.until("started server", 200)
        started.signal(signal.SIGKILL)
        started.popen.wait()
    assert place.left()
    kept = place.tool("k8s.janitor", "--namespace", place.namespace)
    assert (kept.returncode, "kept" in kept.stdout) == (0, True), kept.stdout + kept.stderr
    assert place.left()
    time.sleep(1.1)
    gone = place.tool("k8s.janitor", "--namespace", place.namespace, "--older-than", "1s")
    assert (gone.returncode, "removed" in gone.stdout) == (0, True), gone.stdout + gone.stderr
    assert place.left() == []


def test_by_hand_render_apply_fetch(place: fleet.Place) -> None:
    """What a user with kubectl does; the log of the leader is the whole story."""
    from k8s import manifest
    from k8s.api import client

    user = place.directory / "user"
    made = place.tool(
        "k8s.render",
        str(user / "case.yaml"),
        "--profile",
        str(user / "lab.yaml"),
        "--namespace",
        place.namespace,
        "--rehearse",
        "--fault",
        "crash@1:load",
    )
    assert made.returncode == 0, made.stderr
    documents = list(yaml.safe_load_all(made.stdout))
    name = documents[-1]["metadata"]["name"]
    template = documents[-1]["spec"]["leaderWorkerTemplate"]["workerTemplate"]
    template["spec"]["containers"][0]["env"].append({"name": "FAIL_TAG", "value": "TAG-4711"})
    api = place.api()
    plurals = {"Secret": "secrets", "ConfigMap": "configmaps", "Service": "services"}
    try:
        for document in documents:
            plural = plurals.get(document["kind"], "leaderworkersets")
            api.apply(client.path(place.namespace, plural, document["metadata"]["name"]), document)
        fleet.await_(
            lambda: sum(_ready(pod) for pod in place.items("pods")) == 2,
            240,
            lambda: place.items("pods"),
        )
        target = client.path(place.namespace, "pods", f"{name}-0", "log")
        log = [line.decode() for line in api.lines(target, {}, 20.0, lambda: False)]
        assert log[-1] == "TAG-4711"
        assert any("verdict: startup: node 1 (worker) server" in line for line in log), log
        assert any("holding" in line and "after 20" in line for line in log), log
        fetched = place.tool(
            "k8s.fetch",
            "--name",
            name,
            "--namespace",
            place.namespace,
            "--run-dir",
            str(user / "fetched"),
        )
        assert fetched.returncode == 1, fetched.stdout + fetched.stderr
        assert "STARTUP" in fetched.stdout
        assert (user / "fetched" / "node-1" / "server.log").exists()
    finally:
        names = manifest.Names(name, place.namespace)
        from k8s import cleanup

        run = documents[-1]["metadata"]["labels"]["multinode/run"]
        parts = sum("-bundle-" in document["metadata"]["name"] for document in documents)
        assert cleanup.remove(api, names, run, parts, 60) == []


def _ready(pod: dict[str, object]) -> bool:
    status: dict[str, list[dict[str, str]]] = pod["status"]  # type: ignore[assignment]
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in status.get("conditions", [])
    )
