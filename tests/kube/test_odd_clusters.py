"""Clusters that put more into a pod than we do, or that are late: a run passes on them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s.manifest import Names
from k8s.triage import Triage

from . import fleet
from .conftest import QUICK
from .double import KubeDouble, Timing, sandbox

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(180)
Change = Callable[[str, dict[str, Any]], None]


def injecting(command: str, first: bool) -> Change:
    """Admission as a mesh does it: a container beside ours, fields on what we made."""

    def change(kind: str, body: dict[str, Any]) -> None:
        if kind != "Pod":
            return
        meta, spec = body["metadata"], body["spec"]
        meta.setdefault("annotations", {})["sidecar.istio.io/status"] = "{}"
        meta.setdefault("labels", {})["security.istio.io/tlsMode"] = "istio"
        spec.setdefault("tolerations", []).append({"key": "a", "operator": "Exists"})
        own = next(each for each in spec["containers"] if each["name"] == "node")
        more = {"name": f"istio-proxy-{len(spec['containers'])}", "image": "registry.local/mesh:1"}
        sidecar = {**copy.deepcopy(own), **more, "command": ["sh", "-c", command]}
        for key in ("readinessProbe", "volumeMounts", "resources", "env"):
            sidecar.pop(key, None)
        spec["containers"].insert(0 if first else len(spec["containers"]), sidecar)

    return change


ENDS = "echo multinode: MULTINODE-DONE node 0; exit 0"
LOGS = "while :; do echo '{}'; sleep 0.2; done"


def logs_are_ours(done: fleet.Done) -> None:
    """Each pod's log is what its own node said."""
    for index in (0, 1):
        lines = (done.run_dir / f"node-{index}" / "pod.log").read_text().splitlines()
        told = [line for line in lines if line.startswith("{")]
        own = (done.run_dir / f"node-{index}" / "events.jsonl").read_text().splitlines()
        assert told == own


def test_sidecars_that_end_and_log_change_nothing_nor_late_config_maps_nor_a_missing_proxy(
    tmp_path: Path,
) -> None:
    """Pods know one another by name and address alone; through a Service goes nothing of ours."""
    timing = Timing(backoff=QUICK.backoff, remove=QUICK.remove, cache=2.0)
    with KubeDouble(tmp_path / "kube", timing=timing, proxy=False) as kube:
        kube.webhooks += [injecting(LOGS, True), injecting(ENDS, False)]
        with fleet.start(kube, tmp_path / "user") as started:
            done = started.finish(90)
        assert (done.code, done.verdict["verdict"]) == (0, "pass"), done.text
        assert "failed to sync configmap cache" in done.text
        logs_are_ours(done)
        assert fleet.leftovers(kube) == []


def test_sidecars_the_other_way_round_and_what_is_kept_is_fetched_by_hand(
    kube: KubeDouble, tmp_path: Path
) -> None:
    kube.webhooks += [injecting(ENDS, True), injecting(LOGS, False)]
    with fleet.start(kube, tmp_path / "user", "--keep") as started:
        done = started.finish(90)
    assert done.code == 0, done.text
    logs_are_ours(done)
    assert "kubectl exec -n rec -it mn-pair-" in done.text
    assert "kubectl delete -n rec lws/mn-pair-" in done.text
    name = next(item["metadata"]["name"] for item in kube.objects("leaderworkersets", "rec"))
    place = fleet.Place(fleet.environment(kube), fleet.PROFILE, kube.namespace, tmp_path)
    for tool in (("fetch", "--run-dir", str(tmp_path / "fetched")), ("follow",)):
        told = place.tool(f"k8s.{tool[0]}", "--name", name, *tool[1:])
        assert told.returncode == 0, told.stdout + told.stderr
    assert (tmp_path / "fetched" / "node-1" / "record.json").exists()
    pod = kube.pods()[0]["metadata"]
    assert pod["annotations"]["kubectl.kubernetes.io/default-container"] == "node"


def test_a_node_has_finished_when_our_container_says_so() -> None:
    names = Names("x", "lab")
    triage = Triage(names, 1, {}, 0.0)
    rows = [
        {"name": "istio-proxy", "ready": False, "state": {"waiting": {"reason": "Crash"}}},
        {"name": "node", "ready": True, "restartCount": 0, "state": {"running": {}}},
    ]
    conditions = [{"type": "Ready", "status": "False"}]
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": rows}
    pod = {"metadata": {"name": "x-0", "uid": "u"}, "spec": {}, "status": status}
    triage.pod("MODIFIED", pod, 1.0)
    assert triage.finished() == [0]
    rows[0]["ready"], rows[1]["ready"], conditions[0]["status"] = True, False, "True"
    triage.pod("MODIFIED", pod, 2.0)
    assert triage.finished() == []


def test_an_outage_after_which_names_and_deletion_are_late(
    kube: KubeDouble, tmp_path: Path
) -> None:
    with fleet.start(kube, tmp_path / "user") as started:
        started.until("applied mn-pair-")
        kube.restart_api(downtime=1.0, lag=4.0)
        done = started.finish(120)
    assert done.code == 0, done.text
    assert fleet.leftovers(kube) == []


def test_a_kill_with_cgroup_v1_shows_in_no_status(kube: KubeDouble, tmp_path: Path) -> None:
    with fleet.start(kube, tmp_path / "user", "--load-seconds", "6") as started:
        started.until("node 1  load      started server")
        pod = max((p["metadata"]["name"] for p in kube.pods()), key=len)
        kube.starve(pod, sandbox.descendant(kube.pid(pod), "vllm serve"))
        [status] = next(p for p in kube.pods() if p["metadata"]["name"] == pod)["status"][
            "containerStatuses"
        ]
        assert (status["restartCount"], "running" in status["state"]) == (0, True)
        done = started.finish(90)
    assert done.code == 1, done.text
    cause = done.verdict["cause"]
    assert (cause["node"], cause["process"], cause["signal"]) == (1, "server", "SIGKILL"), cause
    record = json.loads((done.run_dir / "node-1" / "record.json").read_text())
    assert record["outcome"] != "pass"
    assert fleet.leftovers(kube) == []
