"""The way in: each kind of credentials, TLS, refusals, faults, the edges of watches."""

from __future__ import annotations

import base64
import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from k8s import client
from k8s.client import Api, ApiError
from k8s.watch import Watch
from steps.core.errors import InfraError

from . import fleet
from .double import KubeDouble

pytest.importorskip("kubernetes")


def connected(env: dict[str, str], patience: float = 20.0) -> Api:
    own = {k: v for k, v in os.environ.items() if not k.startswith("KUBE")}
    with mock.patch.dict(os.environ, {**own, **env}, clear=True):
        return client.connect(patience)


def sleeper(name: str = "x-0") -> dict[str, Any]:
    row = {"name": "node", "image": "registry.local/py:1", "command": ["sleep", "3600"]}
    spec = {"containers": [row], "terminationGracePeriodSeconds": 0}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}


def config_map(name: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "b"}}


def test_a_kubeconfig_in_base64_over_tls_lists_and_executes(tmp_path: Path) -> None:
    with KubeDouble(tmp_path / "kube", tls=True) as kube:
        text = base64.b64encode(kube.kubeconfig().read_bytes()).decode()
        api = connected({"KUBECONFIG_B64": text})
        assert api.namespace == "rec"
        kube.create(sleeper())
        fleet.await_(lambda: kube.pods()[0]["status"]["phase"] == "Running")
        argv = ["sh", "-c", "echo out; echo err >&2; exit 3"]
        code, said = api.run("rec", "x-0", "node", argv)
        assert (code, sorted(said.split())) == (3, ["err", "out"])


@pytest.mark.parametrize(
    "env",
    [
        {"KUBECONFIG": "/nowhere/config"},
        {"KUBECONFIG_B64": "bm90IGEgY29uZmln"},
        {"KUBECONFIG_B64": "%%%"},
        {"HOME": "/nowhere"},
    ],
    ids=["absent", "no-config", "no-base64", "nothing-set"],
)
def test_no_way_in_is_said_plainly(env: dict[str, str]) -> None:
    with pytest.raises(InfraError, match="kubeconfig"):
        connected(env)


def test_refusals_come_in_the_apis_own_words(kube: KubeDouble) -> None:
    api = connected({"KUBECONFIG": str(kube.kubeconfig())})
    with pytest.raises(ApiError) as absent:
        api.get(client.path("rec", "pods", "none"))
    assert (absent.value.code, absent.value.reason) == (404, "NotFound")
    with pytest.raises(ApiError) as no_pod:
        api.run("rec", "none", "node", ["true"])
    assert (no_pod.value.code, "not found" in no_pod.value.message) == (404, True)
    body = {**config_map("x"), "dta": {}}
    with pytest.raises(ApiError, match="dta"):
        api.apply(client.path("rec", "configmaps", "x"), body)
    assert api.delete(client.path("rec", "configmaps", "none")) is False


@pytest.mark.parametrize("fault", ["429", "500", "503", "cut"])
def test_faults_that_pass_are_ridden_out(kube: KubeDouble, fault: str) -> None:
    api = connected({"KUBECONFIG": str(kube.kubeconfig())})
    told: list[str] = []
    api.troubles = told.append
    kube.fault(fault, times=2, path="/configmaps")
    made = api.apply(client.path("rec", "configmaps", "x"), config_map("x"))
    assert made["metadata"]["uid"], "an apply that creates has an answer"
    assert len(told) == 2


def test_faults_that_stay_end_with_patience(kube: KubeDouble) -> None:
    api = connected({"KUBECONFIG": str(kube.kubeconfig())}, patience=0.5)
    kube.fault("503", path="/configmaps")
    with pytest.raises(ApiError) as caught:
        api.items(client.path("rec", "configmaps"))
    assert caught.value.code == 503


def test_a_watch_misses_nothing_over_drops_and_lost_history(kube: KubeDouble) -> None:
    api = connected({"KUBECONFIG": str(kube.kubeconfig())})
    seen: list[tuple[str, str]] = []
    lock = threading.Lock()

    def change(kind: str, item: dict[str, Any]) -> None:
        with lock:
            seen.append((kind, item["metadata"]["name"]))

    watch = Watch(api, client.path("rec", "configmaps"), change).start()
    try:
        kube.create(config_map("a"))
        fleet.await_(lambda: ("ADDED", "a") in seen)
        kube.drop_watches()
        kube.create(config_map("b"))
        fleet.await_(lambda: ("ADDED", "b") in seen)
        kube.fault("500", path="watch=true", times=2)
        kube.expire_watches()
        api.delete(client.path("rec", "configmaps", "a"))
        kube.create(config_map("c"))
        fleet.await_(lambda: {("DELETED", "a"), ("ADDED", "c")} <= set(seen), 20, lambda: seen)
    finally:
        watch.close()
    assert len(seen) == len(set(seen)), "nothing is told twice"
