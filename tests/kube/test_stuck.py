"""Deletion that does not come to its end: which pod is in the way, why, and who finishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from . import fleet
from .double import Image, KubeDouble

pytest.importorskip("kubernetes")
pytestmark = pytest.mark.timeout(180)
IMAGE = "registry.local/py:1"
#: A whole minute beyond the grace is waited for what is not seen to be stuck.
PROFILE = fleet.PROFILE.replace("pulling: 20", "pulling: 2").replace("grace: 5", "grace: 1")


def hanging(kube: KubeDouble, tmp_path: Path) -> fleet.Done:
    """A run whose pulls hang, ended by its budget; what it could not delete is still there."""
    kube.images[IMAGE] = Image(present=False, hangs=True)
    with fleet.start(kube, tmp_path / "user", profile=PROFILE) as started:
        return started.finish(120)


def janitor(kube: KubeDouble, tmp_path: Path, token: str = "") -> Any:
    env = fleet.environment(kube, token)
    place = fleet.Place(env, PROFILE, kube.namespace, tmp_path)
    return place.tool("k8s.janitor", "--older-than", "1s", "--namespace", kube.namespace)


def test_a_pull_that_hangs_is_named_and_a_janitor_that_may_finishes_it(
    kube: KubeDouble, tmp_path: Path
) -> None:
    done = hanging(kube, tmp_path)
    assert (done.code, "pulling took over 2 s" in done.reason) == (3, True), done.text
    name = next(item["metadata"]["name"] for item in kube.objects("leaderworkersets", "rec"))
    [left] = [line for line in done.text.splitlines() if "not everything is gone" in line]
    assert f"leaderworkersets/{name}" in left
    assert f'pods/{name}-0: its container never started: Pulling image "{IMAGE}"' in left
    assert "nox -s janitor" in left
    assert fleet.leftovers(kube)
    role = yaml.safe_load((fleet.ROOT / "k8s" / "role.yaml").read_text())
    assert {"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]} in role["rules"]
    role["rules"] = [rule for rule in role["rules"] if rule["verbs"] != ["delete"]]
    kube.add_token("old", "old", role, kube.namespace)
    swept = janitor(kube, tmp_path, "old")
    assert (swept.returncode, "LEFT" in swept.stdout) == (3, True), swept.stdout + swept.stderr
    pod = max((pod["metadata"]["name"] for pod in kube.pods()), key=len)
    assert f"kubectl delete -n rec pod/{pod} --grace-period=0 --force" in swept.stderr
    assert "Traceback" not in swept.stderr
    swept = janitor(kube, tmp_path)
    assert (swept.returncode, "removed" in swept.stdout) == (0, True), swept.stdout + swept.stderr
    assert fleet.leftovers(kube) == []


def test_a_pull_that_ends_after_all_lets_deletion_end(kube: KubeDouble, tmp_path: Path) -> None:
    kube.images[IMAGE] = Image(present=False, hangs=True)
    with fleet.start(kube, tmp_path / "user", profile=PROFILE) as started:
        fleet.await_(lambda: any(m == "DELETE" for m, _ in kube.api.requests), 60, started.text)
        kube.images[IMAGE] = Image()
        done = started.finish(120)
    assert "nothing of mn-pair-" in done.text, done.text
    assert fleet.leftovers(kube) == []


def test_a_pod_whose_container_ran_is_never_forced(kube: KubeDouble, tmp_path: Path) -> None:
    """Its processes may still hold devices on a node that does not answer."""
    from k8s import cleanup

    def pod(**status: Any) -> dict[str, Any]:
        meta = {"name": "x-0", "deletionTimestamp": "2020-01-01T00:00:00Z"}
        return {"metadata": meta, "status": {"containerStatuses": [{"name": "node", **status}]}}

    waiting = {"waiting": {"reason": "ContainerCreating"}}
    assert cleanup.never_ran(pod(state=waiting, restartCount=0), 1.6e9)
    assert not cleanup.never_ran(pod(state=waiting, restartCount=1), 1.6e9)
    assert not cleanup.never_ran(pod(state={"running": {}}, restartCount=0), 1.6e9)
    assert not cleanup.never_ran(pod(state={"terminated": {}}, restartCount=0), 1.6e9)
    assert not cleanup.never_ran(pod(state=waiting, restartCount=0), 1.5e9), "it has its grace"
    fresh = pod(state=waiting, restartCount=0)
    del fresh["metadata"]["deletionTimestamp"]
    assert not cleanup.never_ran(fresh, 1.6e9)
