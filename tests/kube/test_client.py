"""The way in: each kind of credentials, TLS, refusals, faults, the edges of watches."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import yaml

from k8s.api import access, client
from k8s.api.client import Api, ApiError
from k8s.api.watch import Watch
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


class Cutter:
    """An API of which every watch is opened and cut before its first line, as idle ones are."""

    def __init__(self) -> None:
        self.opened = 0

    def ask(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": []}

    def lines(self, *arguments: Any) -> Any:
        arguments[-1]()
        self.opened += 1
        raise ApiError(0, "", "IncompleteRead: 0 bytes read")
        yield b""


def test_a_watch_that_is_cut_while_nothing_happens_is_no_silence() -> None:
    api: Any = Cutter()
    watch = Watch(api, "/x", lambda kind, item: None).start()
    troubles = set()
    try:
        fleet.await_(lambda: troubles.add(watch.trouble) or api.opened > 3)
    finally:
        watch.close()
    assert troubles == {""}
    assert not watch.silent_since


def test_connections_are_kept_alive_whatever_the_clients_release(kube: KubeDouble) -> None:
    """Releases before 36 have no setting for socket options; asking for one is an error there."""
    api = connected({"KUBECONFIG": str(kube.kubeconfig())})
    options = api._pool.connection_pool_kw["socket_options"]
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in options
    assert not getattr(api.configuration, "socket_options", None)


class Tunnel(threading.Thread):
    """A proxy with one destination, whatever it is asked for."""

    def __init__(self, destination: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.destination = destination
        self.asked: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += near.recv(4096)
                self.asked.append(head.split(b"\r\n")[0])
                far = socket.create_connection(self.destination)
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=(one, other), daemon=True).start()

    def pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_a_proxy_and_a_server_name_of_the_kubeconfig_hold_for_commands_too(tmp_path: Path) -> None:
    with KubeDouble(tmp_path / "kube", tls=True) as kube:
        address = urlsplit(kube.url)
        tunnel = Tunnel((str(address.hostname), int(address.port or 0)))
        tunnel.start()
        document = yaml.safe_load(kube.kubeconfig().read_text())
        document["clusters"][0]["cluster"] |= {
            "server": "https://api.behind.invalid:6443",
            "proxy-url": f"http://127.0.0.1:{tunnel.port}",
            "tls-server-name": address.hostname,
        }
        text = base64.b64encode(yaml.safe_dump(document).encode()).decode()
        api = connected({"KUBECONFIG_B64": text})
        kube.create(sleeper())
        fleet.await_(lambda: kube.pods()[0]["status"]["phase"] == "Running")
        assert api.items(client.path("rec", "pods"))
        assert api.run("rec", "x-0", "node", ["echo", "out"]) == (0, "out\n")
        assert {line.split()[1] for line in tunnel.asked} == {b"api.behind.invalid:6443"}
        assert len(tunnel.asked) >= 2, "one for requests, one for the command"
        tunnel.listener.close()


def test_the_account_of_the_pod_we_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token, CA and namespace from files; a token that is renewed on disk is read again."""
    from kubernetes.config import incluster_config

    with KubeDouble(tmp_path / "kube", tls=True) as kube:
        account = tmp_path / "account"
        account.mkdir()
        document = yaml.safe_load(kube.kubeconfig().read_text())
        authority = document["clusters"][0]["cluster"]["certificate-authority-data"]
        (account / "ca.crt").write_bytes(base64.b64decode(authority))
        (account / "token").write_text(document["users"][0]["user"]["token"])
        (account / "namespace").write_text("rec\n")
        monkeypatch.setattr(access, "_ACCOUNT", account)
        token, ca = str(account / "token"), str(account / "ca.crt")
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", token)
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", ca)
        address = urlsplit(kube.url)
        env = {
            "HOME": str(tmp_path),
            "KUBERNETES_SERVICE_HOST": str(address.hostname),
            "KUBERNETES_SERVICE_PORT": str(address.port),
        }
        api = connected(env)
        assert (api.namespace, api.items(client.path("rec", "pods"))) == ("rec", [])
        rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
        kube.add_token("fresh", "admin", {"rules": [rule]})
        kube.expire_token()
        (account / "token").write_text("fresh")
        with mock.patch.dict(os.environ, env), mock.patch.object(api, "_loaded", -10.0):
            assert api.items(client.path("rec", "pods")) == []


def test_a_wrong_static_token_is_refused_at_once(kube: KubeDouble, tmp_path: Path) -> None:
    config = str(kube.kubeconfig(tmp_path / "config", "nobody-knows-it"))
    began = time.monotonic()
    api = connected({"KUBECONFIG": config})
    with pytest.raises(ApiError) as refused:
        api.get("/api/v1/namespaces/rec/pods")
    assert (refused.value.code, time.monotonic() - began < 4) == (401, True)


def test_a_token_that_was_good_once_may_be_renewed_in_a_while(
    kube: KubeDouble, tmp_path: Path
) -> None:
    config = kube.kubeconfig(tmp_path / "config")
    api = connected({"KUBECONFIG": str(config)})
    api.get("/api/v1/namespaces/rec/pods")
    kube.expire_token()
    threading.Timer(3.0, kube.renew_token).start()
    assert api.get("/api/v1/namespaces/rec/pods")["items"] == []


def test_an_outage_is_remembered_for_the_budgets_after_it(kube: KubeDouble) -> None:
    api = connected({"KUBECONFIG": str(kube.kubeconfig())})
    assert api.late(60.0) == 0.0
    kube.fault("503", times=1)
    api.get("/api/v1/namespaces/rec/pods")
    assert 50.0 < api.late(60.0) <= 60.0
    kube.fault("404", times=1)
    with pytest.raises(ApiError):
        api.get("/api/v1/namespaces/rec/pods/x")
