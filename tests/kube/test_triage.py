"""The triage over every recording of a real cluster: what it finds, and what it must not find."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from k8s.manifest import Names
from k8s.triage import Finding, Triage

from . import condense

BUDGETS = {"scheduling": 60.0, "pulling": 60.0, "starting": 30.0}
_CONTAINER = re.compile(
    r"\[node: (?P<state>(?:(?!; last ).)*); last (?P<last>(?:(?!; restarts ).)*); "
    r"restarts (?P<restarts>\d+); ready (?P<ready>\w+)"
)


def pods(scenario: str, deletions: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each state of each pod as the API showed it, without the deletion at a recording's end."""
    for name, lives in condense.load(scenario)["pods"].items():
        for life, states in enumerate(lives):
            for text in states:
                if " deleting(" in text and not deletions:
                    break
                yield pod(name, f"uid-{life}", text)


def pod(name: str, uid: str, text: str) -> tuple[str, dict[str, Any]]:
    """A pod from its condensed state."""
    kind, _, rest = text.partition(" ")
    if kind not in ("ADDED", "DELETED"):
        kind, rest = "MODIFIED", text
    meta: dict[str, Any] = {"name": name, "uid": uid}
    if " deleting(" in text:
        meta["deletionTimestamp"] = "2026-08-01T10:00:00Z"
    status: dict[str, Any] = {"phase": rest.split(" ")[0], "conditions": []}
    scheduled = re.search(r"PodScheduled=(\w+)(?:/\w+\((.*?)\))?(?: |$)", rest)
    if scheduled:
        row = {"type": "PodScheduled", "status": scheduled[1], "message": scheduled[2] or ""}
        status["conditions"].append(row)
    found = _CONTAINER.search(rest)
    if found:
        row = {
            "name": "node",
            "restartCount": int(found["restarts"]),
            "ready": found["ready"].lower() == "true",
            "state": _state(found["state"]),
            "lastState": {} if found["last"] == "-" else _state(found["last"]),
        }
        status["containerStatuses"] = [row]
    return kind, {"metadata": meta, "status": status, "spec": {}}


def _state(text: str) -> dict[str, Any]:
    word, _, rest = text.partition(" ")
    if word == "running":
        return {"running": {}}
    reason, _, rest = rest.partition(" ")
    if word == "waiting":
        return {"waiting": {"reason": reason, "message": rest}}
    code, _, message = rest.partition(" ")
    ended = {"reason": reason, "exitCode": int(code), "message": message}
    return {"terminated": {**ended, "finishedAt": "2026-08-01T10:00:00Z"}}


def events(scenario: str) -> Iterator[dict[str, Any]]:
    """Each event as the API showed it."""
    for about, rows in condense.load(scenario)["events"].items():
        kind, _, name = about.partition("/")
        for row in rows:
            type_, reason, rest = row.split(" ", 2)
            message = rest.partition(": ")[2]
            where = {"kind": kind, "name": name}
            yield {"type": type_, "reason": reason, "message": message, "involvedObject": where}


def base(scenario: str) -> str:
    """The LeaderWorkerSet's name in a recording."""
    return str(next(iter(condense.load(scenario)["leaderworkersets"])))


@dataclass(frozen=True)
class Replay:
    """A triage that has seen a recording, and the time."""

    triage: Triage
    now: float


def replay(scenario: str, seconds: float = 10.0, deletions: bool = False) -> Replay:
    """The triage after a recording, ``seconds`` after its events."""
    triage = Triage(Names(base(scenario), "rec"), 2, BUDGETS, now=0.0)
    for kind, item in pods(scenario, deletions):
        triage.pod(kind, item, 1.0)
    for event in events(scenario):
        triage.event(event, 2.0)
    return Replay(triage, 2.0 + seconds)


def found(replayed: Replay) -> Finding | None:
    """What the triage says at the end of a replay."""
    return replayed.triage.finding(replayed.now)


@pytest.mark.parametrize(
    ("scenario", "node", "words"),
    [
        ("worker-exits-1-policy-none", 1, "ended with exit code 1"),
        ("leader-exits-0-policy-none", 0, "ended with exit code 0"),
        ("oom-killed", 1, "OOMKilled, over its memory limit"),
        ("image-not-there", 0, "ErrImagePull: failed to pull and unpack image"),
        ("image-never-pull", 0, "is not present with pull policy of Never"),
        ("missing-configmap", 0, 'configmap "not-there" not found'),
        ("missing-pvc", 0, 'persistentvolumeclaim "not-there" not found'),
        ("quota-exceeded", None, "exceeded quota: one-pod"),
        ("name-too-long", None, "FailedCreate|must be no more than 63|is invalid"),
        ("template-restart-never", None, "restartPolicy|Unsupported value"),
    ],
)
def test_what_cannot_work_is_found_in_its_own_words(
    scenario: str, node: int | None, words: str
) -> None:
    finding = found(replay(scenario))
    assert finding is not None
    assert finding.node == node
    assert re.search(words, finding.reason), finding.reason


@pytest.mark.parametrize("scenario", ["finish-both-pass", "leader-fails-holding"])
def test_members_that_hold_are_no_trouble(scenario: str) -> None:
    triage = replay(scenario)
    assert found(triage) is None
    assert 0 in triage.triage.finished()


def test_no_node_for_the_devices_waits_its_budget_and_says_so() -> None:
    triage = replay("unschedulable-npu")
    assert found(triage) is None
    assert "Insufficient huawei.com/ascend-1980" in triage.triage.waiting_for()
    late = found(replay("unschedulable-npu", BUDGETS["scheduling"] + 1))
    assert late is not None
    assert "scheduling took over 60 s" in late.reason
    assert "Insufficient huawei.com/ascend-1980" in late.reason


def test_a_deleted_pod_and_a_recreated_group_are_lost_nodes() -> None:
    deleted = found(replay("worker-pod-deleted", deletions=True))
    assert deleted is not None
    assert deleted.gone
    recreated = found(replay("worker-exits-policy-recreate"))
    assert recreated is not None
    assert re.search("exit code|recreated|replaced", recreated.reason)


def test_a_service_of_the_same_name_is_no_business_of_the_pods() -> None:
    assert found(replay("service-name-clash")) is None


def test_a_restart_alone_tells() -> None:
    """Once a container's end was never visible: only the counter told."""
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    text = (
        "Running PodScheduled=True [node: running; last -; restarts 1; ready False; started True]"
    )
    triage.pod(*pod("x-0", "u", text), 1.0)
    finding = triage.finding(1.0)
    assert finding is not None
    assert "was started again" in finding.reason


def test_troubles_that_pass_are_forgotten() -> None:
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    where = {"kind": "Pod", "name": "x-0"}
    text = 'MountVolume.SetUp failed for volume "v" : configmap "late" not found'
    triage.event({"reason": "FailedMount", "message": text, "involvedObject": where}, 1.0)
    assert triage.finding(3.0) is None
    triage.event({"reason": "Started", "message": "", "involvedObject": where}, 4.0)
    running = (
        "Running PodScheduled=True [node: running; last -; restarts 0; ready False; started True]"
    )
    triage.pod(*pod("x-0", "u", running), 4.0)
    assert triage.finding(100.0) is None


def test_the_earliest_death_counts() -> None:
    triage = Triage(Names("x", "rec"), 2, BUDGETS, 0.0)
    running = "Running [node: running; last -; restarts 0; ready False; started True]"
    for index, name in enumerate(("x-0", "x-0-1")):
        triage.pod(*pod(name, "u", running), 1.0)
        kind, dead = pod(
            name,
            "u",
            "Running [node: terminated Error 1; last -; restarts 0; ready False; started False]",
        )
        state = dead["status"]["containerStatuses"][0]["state"]
        state["terminated"]["finishedAt"] = f"2026-08-01T10:00:0{5 - index}Z"
        triage.pod(kind, dead, 2.0)
    finding = triage.finding(3.0)
    assert finding is not None
    assert finding.node == 1


def waiting(reason: str, message: str) -> tuple[str, dict[str, Any]]:
    text = f"Pending PodScheduled=True [node: waiting {reason} {message}; last -; restarts 0; "
    return pod("x-0", "u", f"{text}ready False; started False]")


def told(triage: Triage, reason: str, message: str, at: float) -> None:
    where = {"kind": "Pod", "name": "x-0"}
    triage.event({"reason": reason, "message": message, "involvedObject": where}, at)


def test_a_long_pull_does_not_use_up_the_time_to_start() -> None:
    """The image came after 50 of 60 s; the container has its own 30 s from then on."""
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    triage.pod(*waiting("ContainerCreating", ""), 1.0)
    told(triage, "Pulling", 'Pulling image "big"', 1.5)
    assert triage.finding(50.0) is None
    told(triage, "Pulled", 'Successfully pulled image "big" in 50s', 51.5)
    assert triage.finding(52.0) is None
    late = triage.finding(90.0)
    assert late is not None
    assert "starting took over 30 s" in late.reason


def test_a_mount_that_came_late_is_forgotten_when_the_image_is_pulled() -> None:
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    triage.pod(*waiting("ContainerCreating", ""), 1.0)
    told(triage, "FailedMount", 'MountVolume.SetUp failed: configmap "late" not found', 1.0)
    told(triage, "Pulling", 'Pulling image "big"', 3.0)
    assert triage.finding(40.0) is None


@pytest.mark.parametrize(
    "words",
    [
        "pull QPS exceeded",
        "failed to copy: read tcp 10.0.0.1:5: read: connection reset by peer",
        "unexpected status from HEAD request to https://quay.io/v2: 503 Service Unavailable",
        "failed to pull: toomanyrequests: You have reached your pull rate limit",
    ],
)
def test_a_busy_registry_is_asked_again_for_a_while(words: str) -> None:
    triage = Triage(Names("x", "rec"), 1, {**BUDGETS, "pulling": 1800.0}, 0.0)
    told(triage, "Pulling", 'Pulling image "big"', 1.0)
    triage.pod(*waiting("ErrImagePull", words), 2.0)
    triage.pod(*waiting("ImagePullBackOff", 'Back-off pulling image "big"'), 3.0)
    assert triage.finding(200.0) is None
    assert words in triage.waiting_for()
    late = triage.finding(310.0)
    assert late is not None
    assert words in late.reason
    told(triage, "Pulling", 'Pulling image "big"', 311.0)
    told(triage, "Pulled", "", 312.0)
    assert triage.finding(330.0) is None


def test_a_back_off_without_a_reason_is_doomed_when_nothing_says_busy() -> None:
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    triage.pod(*waiting("ImagePullBackOff", 'Back-off pulling image "none"'), 3.0)
    assert triage.finding(3.0) is not None


def test_a_container_that_somebody_put_beside_ours_is_not_ours() -> None:
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    running = "Running [node: running; last -; restarts 0; ready False; started True]"
    kind, item = pod("x-0", "u", running)
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    sidecar = {"name": "istio-proxy", "restartCount": 2, "state": ended, "lastState": {}}
    item["status"]["containerStatuses"].append(sidecar)
    triage.pod(kind, item, 1.0)
    assert triage.finding(2.0) is None
    assert triage.alive() == [0]


def test_an_image_without_the_interpreter_says_so() -> None:
    triage = Triage(Names("x", "rec"), 1, BUDGETS, 0.0)
    message = 'exec: "python3": executable file not found in $PATH'
    text = f"Pending [node: terminated StartError 128 {message}; last -; restarts 0; "
    triage.pod(*pod("x-0", "u", f"{text}ready False; started False]"), 1.0)
    finding = triage.finding(1.0)
    assert finding is not None
    assert "executable file not found" in finding.reason
    assert "`python` in the profile" in finding.hint
