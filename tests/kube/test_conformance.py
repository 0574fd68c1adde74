"""The double does what the recordings show: every scenario, state by state; every refusal, word
by word.

All scenarios run side by side in one cluster, each in a namespace of its own, once a test process.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import requests

from . import condense
from .double import Image, KubeDouble
from .double.cluster import ADMIN_TOKEN

SCENARIOS = sorted(
    path.stem
    for path in condense.RECORDINGS.glob("*.json")
    if path.stem not in ("shapes", "refusals", "exec-and-logs", "watch-edges")
)
LWS = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/{}/leaderworkersets"
LIMIT = 50.0
# how long a container must have run, in seconds, where that decides how it ends: SIGTERM finds it
# in its "sleep 9", which is over before the grace of 2 s is
HOLD = {"image-never-pull": 7.7, "missing-configmap": 7.7, "quota-exceeded": 7.7}


class Stage:
    """One cluster and the traces of all scenarios run in it."""

    def __init__(self, kube: KubeDouble) -> None:
        self.kube = kube
        self.http = requests.Session()
        self.http.headers["Authorization"] = f"Bearer {ADMIN_TOKEN}"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.http.request(method, self.kube.url + path, timeout=30, **options)

    def rows(self, namespace: str) -> list[condense.Row]:
        """What a watch on the namespace would have shown, its name written as in the recordings."""

        def work() -> list[condense.Row]:
            made = []
            for change in self.kube.store.log:
                if change.object["metadata"].get("namespace") == namespace:
                    text = json.dumps({"type": change.type, "object": change.object}).replace(
                        namespace, "rec"
                    )
                    made.append(
                        {"kind": "watch", "resource": change.kind.plural, "event": json.loads(text)}
                    )
            return [
                row
                for row in made
                if row["resource"] in ("pods", "statefulsets", "leaderworkersets", "events")
            ]

        return self.kube.on_loop(work)

    def age(self, namespace: str) -> float:
        """How long the oldest container of a namespace has run, seconds."""

        def work() -> float:
            ages = [0.0]
            for worker in self.kube.kubelet.workers.values():
                for container in worker.containers.values():
                    process = container.process
                    if worker.namespace == namespace and process and process.code is None:
                        born = psutil.Process(process.pid).create_time()
                        ages.append(time.time() - born)
            return max(ages)

        return self.kube.on_loop(work)

    def logs(self, rows: list[condense.Row], namespace: str) -> dict[str, list[str]]:
        """Each pod's log, of its first life: as the node keeps it, since pods may be gone."""
        made: dict[str, list[str]] = {}
        for row in rows:
            meta = row["event"]["object"]["metadata"]
            path = self.kube.directory / "pods" / meta["uid"] / "logs" / "node-0.log"
            if row["resource"] == "pods" and meta["name"] not in made and path.exists():
                text = path.read_text().replace(namespace, "rec")
                made[meta["name"]] = [line.partition(" ")[2] for line in text.splitlines()]
        return made


def run_all(stage: Stage) -> dict[str, dict[str, Any]]:
    """Run every scenario, side by side; the condensed traces by name."""
    made: dict[str, dict[str, Any]] = {}
    running: dict[str, Iterator[None]] = {}
    for i, name in enumerate(SCENARIOS):
        recorded = condense.load(name)
        namespace = f"ns{i:02d}x"
        stage.kube.create(
            {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace}}
        )
        running[name] = _script(stage, name, namespace, recorded)
    deadline = time.monotonic() + LIMIT
    while running and time.monotonic() < deadline:
        for name in list(running):
            if next(running[name], "over") == "over":
                del running[name]
        time.sleep(0.1)
    for i, name in enumerate(SCENARIOS):
        rows = stage.rows(f"ns{i:02d}x")
        made[name] = condense.condense(rows)
        made[name]["logs"] = stage.logs(rows, f"ns{i:02d}x")
        made[name]["timed out"] = name in running
    return made


def _probed(stage: Stage, namespace: str) -> list[str]:
    """The pods whose readiness probe has failed."""
    events = condense.condense(stage.rows(namespace))["events"]
    return [about for about, told in events.items() if any(" Unhealthy " in line for line in told)]


def _script(stage: Stage, name: str, namespace: str, recorded: dict[str, Any]) -> Iterator[None]:
    """One scenario as its recording had it: create, wait for the states before the deletion,
    delete, wait for the end."""
    lws = ""
    for exchange in recorded["exchanges"]:
        if exchange["method"] == "POST":
            body = json.loads(json.dumps(exchange["request"]).replace('"rec"', f'"{namespace}"'))
            path = exchange["path"].replace("/rec/", f"/{namespace}/")
            answer = stage.ask("POST", path, json=body, params=exchange.get("query"))
            assert answer.status_code == exchange["status"], answer.text
            lws = body["metadata"]["name"]
    if name == "worker-pod-deleted":
        yield from _until(lambda: len(re.findall("Running", _states(stage, namespace))) >= 2)
        # the recorded pods had been probed once before one of them was deleted
        yield from _until(lambda: len(_probed(stage, namespace)) == 2)
        assert (
            stage.ask("DELETE", f"/api/v1/namespaces/{namespace}/pods/{lws}-0-1").json()["kind"]
            == "Pod"
        )
    if name == "worker-exits-policy-recreate":
        yield from _until(
            lambda: len(condense.condense(stage.rows(namespace))["pods"].get(f"{lws}-0", [])) >= 3
        )
    else:
        yield from _until(
            lambda: _before_deletion(recorded, condense.condense(stage.rows(namespace)))
        )
    yield from _until(lambda: name not in HOLD or stage.age(namespace) >= HOLD[name])
    answer = stage.ask(
        "DELETE", f"{LWS.format(namespace)}/{lws}", json={"propagationPolicy": "Foreground"}
    )
    assert answer.status_code == 200 and answer.json()["metadata"]["finalizers"] == [
        "foregroundDeletion"
    ]
    yield from _until(
        lambda: (
            not any(
                stage.kube.objects(what, namespace)
                for what in ("pods", "statefulsets", "leaderworkersets")
            )
        )
    )


def _until(done: Callable[[], bool]) -> Iterator[None]:
    while not done():
        yield


def _states(stage: Stage, namespace: str) -> str:
    return " ".join(pod["status"]["phase"] for pod in stage.kube.objects("pods", namespace))


def _before_deletion(recorded: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether every object has come to where the recording stood before the set was deleted."""
    for resource in condense._FIELDS:
        for name, lives in recorded[resource].items():
            for i, life in enumerate(lives):
                wanted = [state for state in life if "deleting" not in state]
                have = mine[resource].get(name, [])
                if i >= len(have) or (i == len(lives) - 1 and have[i][-1] != wanted[-1]):
                    return False
    return all(
        text in mine["events"].get(about, [])
        for about, told in recorded["events"].items()
        for text in told
        if "Killing" not in text
    )


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    recorded = condense.load("image-not-there")
    words = next(
        text.partition('unpack image "registry.invalid/none:1": ')[2]
        for text in recorded["events"]["Pod/case-f-0"]
        if "Failed to pull" in text
    )
    images = {
        "registry.invalid/none:1": Image(present=False, pull_error=words),
        "registry.local/missing:1": Image(present=False),
    }
    with KubeDouble(tmp_path_factory.mktemp("conformance"), images=images) as kube:
        yield Stage(kube)


@pytest.fixture(scope="session")
def traces(stage: Stage) -> dict[str, dict[str, Any]]:
    return run_all(stage)


def _agree(mine: list[str], recorded: list[str]) -> bool:
    """Equal; a recording that ended before the last DELETED is a beginning of ours."""
    cut = not recorded[-1].startswith("DELETED")
    return mine == recorded or (cut and mine[: len(recorded)] == recorded)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("resource", condense._FIELDS)
def test_states_agree(traces: dict[str, dict[str, Any]], scenario: str, resource: str) -> None:
    mine, recorded = traces[scenario][resource], condense.load(scenario)[resource]
    assert not traces[scenario]["timed out"] or mine == recorded
    assert sorted(mine) == sorted(recorded)
    for name, lives in recorded.items():
        if scenario == "worker-exits-policy-recreate":
            _loops_agree(mine[name], lives)
            continue
        assert len(mine[name]) == len(lives), name
        for ours, theirs in zip(mine[name], lives, strict=True):
            if not _agree(ours, theirs):
                assert ours == theirs, name


def _loops_agree(mine: list[list[str]], recorded: list[list[str]]) -> None:
    """An endless loop, cut at any time: two whole lives agree, and objects that outlive the loop
    go through the same."""
    if len(recorded) > 2:
        assert mine[:2] == recorded[:2]
    else:
        assert _living(mine[0]) == _living(recorded[0])
        assert mine[0][0] == recorded[0][0]


def _living(states: list[str]) -> set[str]:
    """States before the end of a life; where the recording was cut decides whether that is seen."""
    return {state for state in states if "deleting" not in state and state.strip() != "DELETED"}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_events_agree(traces: dict[str, dict[str, Any]], scenario: str) -> None:
    assert traces[scenario]["events"] == condense.load(scenario)["events"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_logs_agree(traces: dict[str, dict[str, Any]], scenario: str) -> None:
    # the recorded image had no getent; Python's traceback has its own frames
    machine = ("getent", "Traceback", "  File")
    for pod, lines in condense.load(scenario)["logs"].items():
        wanted = [line for line in lines if not any(word in line for word in machine)]
        mine = [
            line
            for line in traces[scenario]["logs"][pod]
            if not any(word in line for word in machine)
        ]
        assert mine[: len(wanted)] == wanted


def test_objects_have_the_recorded_fields(traces: dict[str, dict[str, Any]]) -> None:
    recorded = condense.load("shapes")
    for resource, paths in recorded.items():
        mine = set().union(*(set(trace["shapes"].get(resource, [])) for trace in traces.values()))
        assert {"more": sorted(mine - set(paths)), "missing": sorted(set(paths) - mine)} == {
            "more": [],
            "missing": [],
        }
