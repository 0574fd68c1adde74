"""Who a node is: names that several name servers know at different times, pods' networks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from steps.core.errors import InfraError
from steps.core.node import identify
from steps.core.plan.cluster import Cluster, ClusterNode


def test_a_name_that_one_name_server_knows_and_another_not_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every second look-up fails, as with two replicas of CoreDNS of which one is behind."""
    failing: Iterator[bool] = iter([True, False] * 9)

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        if next(failing):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    tries: list[str] = []
    assert identify.look_up_own("x-0.x.ns", "", tries.append) == "127.0.0.1"
    assert len(tries) == 1


@pytest.mark.parametrize("backend", ["k8s", "hosts"])
def test_a_bridge_is_a_pods_only_network(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods of a runtime that is Docker may have addresses of its bridge, and reach one another."""
    monkeypatch.setattr(identify, "own_addresses", lambda: {"cni0": ["10.9.8.7"]})
    cluster = Cluster("lab", backend, (ClusterNode(0, "x-0.x.ns"),))
    if backend == "k8s":
        assert identify.identify(cluster, 0, "10.9.8.7").interface == "cni0"
        return
    with pytest.raises(InfraError, match="container bridge"):
        identify.identify(cluster, 0, "10.9.8.7")
