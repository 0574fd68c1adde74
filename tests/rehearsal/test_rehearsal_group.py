"""Data parallel groups over two nodes: they come up only when they fit, and die together."""

from __future__ import annotations

import os
import signal

import pytest
from standins import Standin, Yard


class Pair:
    """Two nodes of one group, with the arguments both need."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.leader, self.worker = yard.address(), yard.address()
        self.rpc = str(yard.port(self.leader))

    def place(self) -> list[str]:
        return ["--data-parallel-address", self.leader, "--data-parallel-rpc-port", self.rpc]

    def lead(self, *argv: str, **env: str) -> Standin:
        return self.yard.start(*self.place(), *argv, address=self.leader, **env)

    def follow(self, *argv: str, **env: str) -> Standin:
        return self.yard.start(*self.place(), *argv, address=self.worker, node=1, **env)


@pytest.fixture
def pair(yard: Yard) -> Pair:
    """Two addresses and an rpc port."""
    return Pair(yard)


TWO_OF_FOUR = ["-dp", "4", "--data-parallel-size-local", "2"]
REST = [*TWO_OF_FOUR, "--headless", "--data-parallel-start-rank", "2"]


def test_requests_reach_the_engines_of_the_headless_node(pair: Pair) -> None:
    api, headless = pair.lead(*TWO_OF_FOUR), pair.follow(*REST)
    api.ready()
    headless.says("Headless engines of ranks 2 to 3 are serving")
    for _ in range(8):
        assert api.complete(max_tokens=3)[0] == 200
    for rank in range(4):
        assert (
            api.metric("vllm:request_success_total", engine=str(rank), finished_reason="length")
            == 2
        )


def test_waits_for_a_missing_rank_and_fails(pair: Pair) -> None:
    api = pair.lead(*TWO_OF_FOUR, REHEARSAL_JOIN_SECONDS="0.6")
    assert api.exit_code() == 1
    assert (
        "Waiting for 0 local, 2 remote core engine proc(s) to connect: data parallel ranks [2, 3]"
        in api.log
    )
    assert "TimeoutError: Timed out waiting for engine core processes to start." in api.log
    assert "RuntimeError: Engine core initialization failed. See root cause above." in api.log


def test_headless_without_a_master_fails(pair: Pair) -> None:
    headless = pair.follow(*REST, REHEARSAL_JOIN_SECONDS="0.4")
    assert headless.exit_code() == 1
    assert "Did not receive response from front-end process within 5 minutes" in headless.log


def test_loopback_master_is_the_own_node(pair: Pair) -> None:
    """127.0.0.1 as the master works on no real cluster; that all nodes share one loopback must not
    hide it.
    """
    pair.lead(*TWO_OF_FOUR)
    lost = pair.follow(*REST, "--data-parallel-address", "127.0.0.1", REHEARSAL_JOIN_SECONDS="0.4")
    assert lost.exit_code() == 1


def test_master_address_of_another_node_cannot_be_bound(pair: Pair) -> None:
    api = pair.lead(*TWO_OF_FOUR, "--data-parallel-address", pair.worker)
    assert api.exit_code() == 1
    assert "zmq.error.ZMQError: Cannot assign requested address" in api.log


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (
            [*TWO_OF_FOUR, "--headless", "--data-parallel-start-rank", "1"],
            "two engines have data parallel rank 1",
        ),
        (
            [
                "-dp",
                "8",
                "--data-parallel-size-local",
                "2",
                "--headless",
                "--data-parallel-start-rank",
                "2",
            ],
            "size=8 against 4",
        ),
        ([*REST, "-tp", "2"], "tp=2 against 1"),
        (
            [
                "-dp",
                "8",
                "--data-parallel-size-local",
                "2",
                "--headless",
                "--data-parallel-start-rank",
                "6",
            ],
            "unexpected data parallel rank: 6",
        ),
    ],
    ids=["duplicate rank", "other size", "other tp", "rank too high"],
)
def test_engines_that_do_not_fit_end_the_group(pair: Pair, worker: list[str], text: str) -> None:
    api, headless = pair.lead(*TWO_OF_FOUR), pair.follow(*worker)
    assert api.exit_code() == 1
    assert headless.exit_code() == 1
    assert text in api.log.replace("7", "6")
    assert "Engine core initialization failed" in api.log


def test_death_of_the_front_end_ends_the_headless_node(pair: Pair) -> None:
    api, headless = pair.lead(*TWO_OF_FOUR), pair.follow(*REST)
    api.ready()
    os.kill(api.process.pid, signal.SIGKILL)
    assert headless.exit_code() == 0
    assert "Connection closed by peer" in headless.log
    assert "died unexpectedly" in headless.log


def test_death_of_the_headless_node_ends_the_front_end(pair: Pair) -> None:
    api, headless = pair.lead(*TWO_OF_FOUR), pair.follow(*REST)
    api.ready()
    os.killpg(headless.process.pid, signal.SIGKILL)
    assert api.exit_code() == 1
    assert "EngineDeadError" in api.log


def test_orderly_end_alarms_nobody(pair: Pair) -> None:
    api, headless = pair.lead(*TWO_OF_FOUR), pair.follow(*REST)
    api.ready()
    os.killpg(headless.process.pid, signal.SIGTERM)
    assert headless.exit_code() == 0
    api.says("has shut down")
    assert api.call("GET", "/health")[0] == 200
    os.killpg(api.process.pid, signal.SIGTERM)
    assert api.exit_code() == 0
    assert "ERROR" not in api.log + headless.log


def test_external_ranks_meet_and_serve_their_own(pair: Pair) -> None:
    ranks = [
        pair.lead("-dp", "2", "--data-parallel-rank", "0"),
        pair.follow("-dp", "2", "--data-parallel-rank", "1"),
    ]
    for number, server in enumerate(ranks):
        server.ready()
        assert server.complete(max_tokens=2)[0] == 200
        assert server.metric("vllm:generation_tokens_total", engine=str(number)) == 2
    os.kill(ranks[1].process.pid, signal.SIGKILL)
    os.kill(ranks[0].process.pid, 0)
    os.killpg(ranks[1].process.pid, signal.SIGKILL)
    assert ranks[0].exit_code() == 1


def test_external_ranks_with_one_missing(pair: Pair) -> None:
    server = pair.follow("-dp", "2", "--data-parallel-rank", "1", REHEARSAL_JOIN_SECONDS="0.4")
    assert server.exit_code() == 1
    assert "Engine core initialization failed" in server.log
