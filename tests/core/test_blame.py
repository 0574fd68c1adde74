"""Whose fault a death is, as far as the log itself says."""

from __future__ import annotations

import pytest

from steps.core.node.causes import blames_another
from steps.core.plan.plan import Process
from steps.core.record import evidence

DIED = (
    "ERROR [core_client.py:598] Engine core proc EngineCore_DP{} died unexpectedly, shutting down"
)
FAILED = (
    "RuntimeError: Engine core initialization failed. Failed core proc(s): {{'EngineCore_DP{}': 9}}"
)


@pytest.mark.parametrize("line", [DIED, FAILED])
@pytest.mark.parametrize(("rank", "blames"), [(0, False), (1, False), (2, True)])
def test_only_a_rank_of_its_own_is_a_servers_own_fault(line: str, rank: int, blames: bool) -> None:
    server = Process("server", "server", ("vllm",), rank=0, ranks=2)
    assert blames_another(server, evidence.of_bytes([line.format(rank).encode()])) is blames


def test_a_peer_that_is_gone_is_blamed() -> None:
    lines = [
        "ERROR [core.py:945] EngineCore encountered a fatal error.",
        "ERROR [core.py:945] ConnectionError: [Gloo] Connection closed by peer: "
        "the front end of this data-parallel group is gone",
    ]
    server = Process("server", "server", ("vllm",), rank=1, ranks=1)
    assert blames_another(server, evidence.of_bytes(["\n".join(lines).encode()]))


def test_an_error_of_its_own_blames_nobody() -> None:
    server = Process("server", "server", ("vllm",))
    assert not blames_another(server, evidence.of_bytes([b"ValueError: no such model"]))
