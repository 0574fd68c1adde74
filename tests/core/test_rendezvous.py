"""The nodes of a run tell one another how it goes: over real sockets, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from steps.core.case.numbers import loads
from steps.core.case.values import decode
from steps.core.node.rendezvous import pace
from steps.core.node.rendezvous.leader import Leader
from steps.core.node.rendezvous.link import Link
from steps.core.node.rendezvous.listener import MAX_BODY
from steps.core.node.rendezvous.messages import (
    DONE,
    PLAN,
    Beat,
    End,
    Hello,
    Look,
    State,
    Told,
    unpacked,
)
from steps.core.record.records import Cause
from steps.core.system import proc
from tests.core.waiting import eventually

TOKEN = "a-token-of-a-run"
PORT = 28999
#: A quarter of the real times, so that nobody waits long for the tests.
BEAT, LOST_AFTER, GONE_AFTER, TICK = 0.3, 1.2, 0.6, 0.06
STARVED_MOST = 1.8
#: A beat longer than a change takes to be known on the busiest machine.
RARE = 8.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAT", "LOST_AFTER", "GONE_AFTER", "TICK"):
        monkeypatch.setattr(pace, name, globals()[name])
    monkeypatch.setattr(pace, "ROLL_WAIT", LOST_AFTER + 0.6)
    monkeypatch.setattr(pace, "STARVED_MOST", STARVED_MOST)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats so rare that whatever comes before one did not wait for it."""
    monkeypatch.setattr(pace, "BEAT", RARE)
    monkeypatch.setattr(pace, "LOST_AFTER", 4 * RARE)


class Fleet:
    """A leader and its workers, with everything they were told."""

    def __init__(self, size: int, address: str = "", **hooks: Any) -> None:
        numbers = secrets.token_bytes(3)
        self.address = address or f"127.{64 + numbers[0] % 128}.{numbers[1]}.{1 + numbers[2] % 250}"
        self.causes: list[Told] = []
        self.records: dict[int, Any] = {}
        self.starved: list[int] = []
        self.leader = Leader(
            self.address,
            PORT,
            TOKEN,
            size,
            on_cause=self.causes.append,
            on_record=self.records.__setitem__,
            on_starved=self.starved.append,
            **hooks,
        )
        self.leader.start()
        self.links: list[Link] = []
        self.states: dict[int, list[State]] = {}
        self.known: dict[int, list[Told]] = {}
        self.lost: dict[int, str] = {}
        self.refused: dict[int, str] = {}

    def worker(self, node: int, *, token: str = TOKEN, hello: Any = None) -> Link:
        """A worker that beats."""
        self.states.setdefault(node, [])
        self.known.setdefault(node, [])
        link = Link(
            self.address,
            PORT,
            token,
            node,
            f"10.0.0.{node}",
            hello or Hello(plan="p", address=str(node)),
            look=lambda: Look("hold", (), {"server": 1}, tuple(self.known[node])),
            on_state=self.states[node].append,
            on_lost=lambda why: self.lost.__setitem__(node, why),
            on_refused=lambda why: self.refused.__setitem__(node, why),
            on_starved=lambda: self.starved.append(0),
        )
        link.start()
        self.links.append(link)
        return link

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.leader.close()


@pytest.fixture
def fleet() -> Iterator[Callable[..., Fleet]]:
    with contextlib.ExitStack() as stack:

        def make(size: int, *args: Any, **hooks: Any) -> Fleet:
            made = Fleet(size, *args, **hooks)
            stack.callback(made.close)
            return made

        yield make


def look_away(seconds: float) -> None:
    """Let time pass."""
    threading.Event().wait(seconds)


@contextlib.contextmanager
def standing_still(leader: Leader) -> Iterator[None]:
    """As SIGSTOP would have it: connected, but silent."""
    over = threading.Event()
    leader.listener.loop.call_soon_threadsafe(over.wait, 20)
    try:
        yield
    finally:
        over.set()


def raw(fleet: Fleet, request: bytes, seconds: float = 5.0) -> bytes:
    """What the leader answers to bytes; empty when it only hangs up."""
    with socket.create_connection((fleet.address, PORT), seconds) as connection:
        connection.sendall(request)
        connection.settimeout(seconds)
        with contextlib.suppress(ConnectionError):
            return connection.recv(65536)
    return b""


def post(path: str, body: bytes, *, token: str = TOKEN, length: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


def beat(node: Any = 1, **more: Any) -> bytes:
    body = {"node": node, "seq": -2, "roll": 0, "causes": [], **more}
    return post("/v1/beat", json.dumps(body).encode())


@pytest.mark.usefixtures("slow")
def test_a_change_is_known_to_all_at_once(fleet: Callable[..., Fleet]) -> None:
    run = fleet(4)
    for node in (1, 2, 3):
        run.worker(node)
    eventually(lambda: run.leader.joined() == [1, 2, 3])
    eventually(lambda: all(run.states.values()))
    look_away(0.1)  # all beats are held now
    began = time.monotonic()
    run.leader.tell(ended=End())
    eventually(lambda: all(s and s[-1].ended for s in run.states.values()))
    assert time.monotonic() - began < RARE * 0.8


@pytest.mark.usefixtures("slow")
def test_no_change_is_missed_however_fast_they_come(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    run.worker(1)
    eventually(lambda: run.states[1])
    for number in range(200):
        run.leader.tell(phase=str(number))
    began = time.monotonic()
    eventually(lambda: run.states[1][-1].phase == "199")
    assert time.monotonic() - began < RARE * 0.8


@pytest.mark.timing
def test_a_held_answer_comes_after_a_beat(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    began = time.monotonic()
    assert b'"seq": 0' in raw(run, beat(seq=0))
    took = time.monotonic() - began
    assert 0.5 * BEAT < took < 3 * BEAT


def test_a_wrong_token_is_refused(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    run.worker(1, token="another")
    eventually(lambda: run.refused)
    assert "token" in run.refused[1]
    assert run.leader.joined() == []
    assert b" 401 " in raw(run, post("/v1/plan", b"{}", token="")).split(b"\r\n")[0]
    assert b" 401 " in raw(run, b"GET /v1/state HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("/v1/beat", b"not json"), 400),
        (post("/v1/beat", b"[1]"), 400),
        (post("/v1/beat", b"\xff\xfe"), 400),
        (post("/v1/beat", b"[" * 200_000), 400),
        (post("/v1/nowhere", b"{}"), 404),
        (post("/v1/beat", b"{}"), 400),
        (beat(0), 400),
        (beat(2), 400),
        (beat(True), 400),
        (beat("1"), 400),
        (beat(1, seq="x"), 400),
        (beat(1, causes=7), 400),
        (beat(1, causes=[{"age": "old"}]), 400),
        (beat(1, causes=[{"cause": {"kind": "exit"}}]), 400),
        (beat(1, passed=[3]), 400),
        (beat(1, progress={"server": "much"}), 400),
        (beat(1, hello={"plan": 1}), 400),
        (beat(1, clock="noon"), 400),
        (beat(1, **{"x" * 5000: 1}), 400),
        (post("/v1/beat", b"", length=str(MAX_BODY + 1)), 413),
        (post("/v1/beat", b"", length="-1"), 413),
        (post("/v1/beat", b"", length="9" * 5000), 413),
        ("POST /v1/beat HTTP/1.1\r\nContent-Length: ²\r\n\r\n".encode("latin-1"), 413),
        (b"X" * (17 << 10), 431),
        (b"\r\n\r\n", 401),
        (b"\0\0\0\r\n\r\n", 401),
    ],
)
def test_malformed_requests_harm_nobody(
    fleet: Callable[..., Fleet], request_bytes: bytes, status: int
) -> None:
    run = fleet(2)
    answer = raw(run, request_bytes)
    assert len(answer) < 600
    assert answer.split(b" ")[1:2] == [str(status).encode()], answer
    assert b" 200 " in raw(run, beat(1))


def nested(levels: int) -> bytes:
    return b'{"hello": {"case": %s%s}}' % (b"[" * levels, b"]" * levels)


@pytest.mark.parametrize("levels", [10, 900, 970, 1500, 8000])
def test_deep_words_cost_no_more_than_a_line(
    fleet: Callable[..., Fleet], levels: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a stranger, and of somebody with the token."""
    told: list[Any] = []
    run = fleet(3, fingerprints={"case": "a"}, on_stranger=lambda *words: told.append(words))
    assert b" 401 " in raw(run, post("/v1/beat", nested(levels), token="none"))
    for field in ("hello", "progress", "causes", "passed", "node", "record"):
        body = b'{"node": 1, "seq": -2, "%s": %s%s}' % (
            field.encode(), b"[" * levels, b"]" * levels,
        )  # fmt: skip
        answer = raw(run, post("/v1/beat", body))
        assert answer[9:12] in (b"200", b"400"), (field, answer)
    assert b" 200 " in raw(run, beat(2))
    assert not told
    assert not caplog.records, "the event loop complained of a request"


@pytest.mark.parametrize("error", [RecursionError("too deep"), KeyError("x" * 9999)])
def test_a_request_that_breaks_the_leader_costs_one_line(
    fleet: Callable[..., Fleet], error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(node: int, record: Any) -> None:
        raise error

    run = fleet(2)
    run.leader._on_record = fail
    for _ in range(20):
        raw(run, post("/v1/done", json.dumps({"node": 1, "seq": -2}).encode()))
    said = capfd.readouterr().err
    assert len(said) < 600
    assert said.count("\n") == (not isinstance(error, RecursionError))
    assert b" 200 " in raw(run, beat(1))


def test_strangers_fill_no_log(fleet: Callable[..., Fleet]) -> None:
    told: list[tuple[str, Any]] = []
    run = fleet(2, fingerprints={"case": "a"}, on_stranger=lambda *words: told.append(words))
    for number in range(60):
        body = json.dumps({"hello": {"case": f"::add-mask::{number}"}}).encode()
        assert b" 401 " in raw(run, post("/v1/beat", body, token="none"))
    assert 2 <= len(told) <= 8
    assert b" 200 " in raw(run, beat(1))


def test_many_silent_connections_do_not_fill_the_memory(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((run.address, PORT), 5))
        eventually(lambda: len(run.leader.listener.writers) > 64)
        look_away(0.1)
        assert len(run.leader.listener.writers) <= 4 * 2 + 66
    assert b" 200 " in raw(run, beat(1))


def test_a_second_node_of_the_same_index_is_refused(fleet: Callable[..., Fleet]) -> None:
    run = fleet(3)
    run.worker(1)
    eventually(lambda: run.leader.joined() == [1])
    run.worker(1, hello=Hello(plan="p", address="another machine"))
    eventually(lambda: run.refused)
    assert "already here, from 10.0.0.1" in run.refused[1]


def test_a_second_program_on_the_same_host_is_refused(fleet: Callable[..., Fleet]) -> None:
    """It says of itself what the first says, word for word."""
    run = fleet(3)
    run.worker(1)
    eventually(lambda: run.leader.joined() == [1])
    run.worker(1)
    eventually(lambda: run.refused)
    assert "already here, from 10.0.0.1" in run.refused[1]


@pytest.mark.parametrize("begun", [False, True])
def test_a_program_started_anew_takes_its_place_only_before_the_run(
    fleet: Callable[..., Fleet], begun: bool
) -> None:
    run = fleet(2)
    first = run.worker(1)
    eventually(lambda: run.leader.joined() == [1])
    if begun:
        run.leader.tell(phase="load")
    first.close()
    eventually(lambda: run.leader.members[1].broken)
    second = run.worker(1)
    if begun:
        eventually(lambda: run.refused)
        assert "already here" in run.refused[1]
        assert "the run has begun" in run.refused[1]
        eventually(lambda: run.leader.members[1].lost)
    else:
        eventually(second.joined.is_set)
        assert not run.leader.members[1].broken
        assert run.refused == {}


def test_the_leader_may_refuse_a_hello(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2, refuse=lambda node, hello: "" if hello.plan == "ours" else "other plan")
    run.worker(1, hello=Hello(plan="theirs"))
    eventually(lambda: run.refused)
    assert run.refused[1] == "other plan"
    assert run.leader.joined() == []


def test_ipv6(fleet: Callable[..., Fleet]) -> None:
    try:
        run = fleet(2, "::1")
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here, or its port is taken: {error}")
    run.worker(1)
    eventually(lambda: run.leader.joined() == [1])


def test_a_taken_port_is_told(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    with pytest.raises(OSError, match="in use"):
        fleet(2, run.address)


@pytest.mark.timing
def test_silence_is_a_lost_node(fleet: Callable[..., Fleet]) -> None:
    run = fleet(3)
    run.worker(2)
    with socket.create_connection((run.address, PORT), 5) as connection:
        connection.sendall(beat(1, main=True))  # one beat, then nothing, still connected
        began = time.monotonic()
        eventually(lambda: run.causes)
        took = time.monotonic() - began
    assert LOST_AFTER * 0.75 < took < LOST_AFTER + 1.5
    (told,) = run.causes
    assert (told.cause.kind, told.cause.node) == ("lost", 1)
    assert "no heartbeat" in told.cause.reason


def test_a_broken_connection_is_a_lost_node_sooner(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    raw(run, beat(1, main=True))
    eventually(lambda: run.causes)
    assert "connection broke" in run.causes[0].cause.reason


@pytest.mark.timing
def test_a_node_that_comes_back_in_time_is_not_lost(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    for _ in range(4):
        raw(run, beat(1, main=True))
        look_away(GONE_AFTER / 2)
    assert run.causes == []


@pytest.mark.timing
def test_a_pause_of_the_leader_declares_nobody_lost(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fleet(2)
    loop = run.leader.listener.loop
    with socket.create_connection((run.address, PORT), 5) as connection:
        connection.sendall(beat(1, main=True))
        eventually(lambda: run.leader.joined() == [1])
        blocked = threading.Event()
        # As a SIGSTOP would: the loop does not run for longer than a node may be silent.
        loop.call_soon_threadsafe(blocked.wait, LOST_AFTER + 0.5)
        look_away(LOST_AFTER + 1.0)
        assert run.causes == []
        connection.sendall(beat(1, main=True))
        look_away(0.3)
        assert run.causes == []


def test_a_leader_that_is_gone_is_lost(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    run.worker(1)
    eventually(lambda: run.states[1])
    run.leader.close()
    eventually(lambda: run.lost)
    assert "Error" in run.lost[1]


def test_a_leader_that_is_not_there_yet_is_waited_for() -> None:
    run = Fleet.__new__(Fleet)
    run.address, run.links, run.states, run.known = "127.99.88.77", [], {}, {}
    run.lost, run.refused = {}, {}
    link = run.worker(1)
    look_away(GONE_AFTER + 0.5)
    assert not run.lost
    leader = Leader(run.address, PORT, TOKEN, 2)
    leader.start()
    try:
        eventually(link.joined.is_set)
    finally:
        link.close()
        leader.close()


def test_roll_call_gathers_what_everybody_knows(fleet: Callable[..., Fleet]) -> None:
    run = fleet(3)
    for node in (1, 2):
        run.worker(node)
    eventually(lambda: run.leader.joined() == [1, 2] and all(run.states.values()))
    now = time.monotonic()
    run.known[2].append(Told(Cause("exit", "crash", "died", node=2), now - 3.0))
    found = run.leader.roll_call()
    assert [told.cause.node for told in found] == [2]
    assert abs(found[0].mono - (now - 3.0)) < 0.5
    assert len(run.leader.roll_call()) == 1  # a cause that was told counts once


def test_a_roll_call_does_not_wait_for_the_lost(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    raw(run, beat(1, main=True))
    eventually(lambda: run.causes)
    began = time.monotonic()
    run.leader.roll_call(30)
    assert time.monotonic() - began < 15


def test_a_roll_call_does_not_wait_for_whom_somebody_saw_end(
    fleet: Callable[..., Fleet],
) -> None:
    made = fleet(3)
    made.worker(1)
    made.worker(2)
    eventually(lambda: made.leader.joined() == [1, 2])
    made.links[0].close()
    made.leader.give_up(1)
    made.leader.give_up(7)
    began = time.monotonic()
    assert made.leader.roll_call(30) == []
    assert time.monotonic() - began < 15


@pytest.mark.usefixtures("slow")
def test_a_cause_is_told_at_once(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    link = run.worker(1)
    eventually(lambda: run.states[1])
    run.known[1].append(Told(Cause("exit", "crash", "died", node=1), time.monotonic()))
    began = time.monotonic()
    link.report()
    eventually(lambda: run.causes)
    assert time.monotonic() - began < RARE * 0.8
    look_away(1.5 * BEAT)
    assert len(run.causes) == 1


def test_records_are_handed_over(fleet: Callable[..., Fleet]) -> None:
    run = fleet(3)
    links = [run.worker(1), run.worker(2)]
    eventually(lambda: run.leader.joined() == [1, 2])
    assert links[0].done({"outcome": "pass"})
    assert not run.leader.all_done()
    assert links[1].done({"outcome": "x" * 1_000_000})
    assert run.leader.all_done()
    assert run.records[1] == {"outcome": "pass"}
    look_away(GONE_AFTER + 0.5)
    assert run.causes == []  # who has ended is not lost


def test_no_one_takes_the_record_of_a_leader_that_is_gone(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    link = run.worker(1)
    eventually(lambda: run.states[1])
    run.leader.close()
    began = time.monotonic()
    assert not link.done({}, seconds=20)
    assert time.monotonic() - began < GONE_AFTER + 2.0


def test_a_leader_known_to_be_lost_is_asked_once_more(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    link = run.worker(1)
    eventually(lambda: run.states[1])
    run.leader.close()
    eventually(lambda: run.lost)
    began = time.monotonic()
    assert not link.done({}, seconds=20)
    assert time.monotonic() - began < 1.5


def test_the_plan_is_told_to_those_who_ask(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    link = run.worker(1)
    run.leader.plan('{"a": 1}')
    eventually(lambda: run.states[1] and run.states[1][-1].planned)
    assert link.plan() == '{"a": 1}'


def test_nothing_of_it_is_left(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    run.worker(1)
    eventually(lambda: run.states[1])
    run.close()
    eventually(
        lambda: (
            not any(
                t.name == "rendezvous" and t is run.leader.listener.thread
                for t in threading.enumerate()
            )
        )
    )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((run.address, PORT))


@pytest.mark.timing
def test_a_worker_that_got_no_time_itself_accuses_nobody(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    link = run.worker(1)
    eventually(lambda: run.states[1])
    began = time.monotonic()
    link._clock.late = lambda: min(time.monotonic() - began, 3 * LOST_AFTER)  # type: ignore[method-assign]
    loop = run.leader.listener.loop
    loop.call_soon_threadsafe(threading.Event().wait, 2 * LOST_AFTER)
    look_away(3 * LOST_AFTER)
    assert not run.lost


@pytest.mark.timing
def test_a_leader_that_stands_still_is_lost(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    run.worker(1)
    eventually(lambda: run.states[1])
    with standing_still(run.leader):
        began = time.monotonic()
        eventually(lambda: run.lost)
        assert time.monotonic() - began < LOST_AFTER + BEAT + 1.5


@pytest.fixture
def starving(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While set, the process table says that whoever is silent waits for a core."""
    starves = threading.Event()

    class Watch:
        def __init__(self, where: str, own: str) -> None:
            self.near = where == own
            self.looked = time.monotonic()

        def waited(self, now: float) -> float:
            passed, self.looked = now - self.looked, now
            return passed if starves.is_set() and self.near else 0.0

    monkeypatch.setattr(proc, "Watch", Watch)
    return starves


@pytest.mark.timing
def test_a_leader_that_waits_for_a_core_is_not_lost_yet(
    fleet: Callable[..., Fleet], starving: threading.Event
) -> None:
    run = fleet(2)
    run.worker(1)
    eventually(lambda: run.states[1])
    starving.set()
    with standing_still(run.leader):
        began = time.monotonic()
        look_away(1.5 * LOST_AFTER)
        assert not run.lost
        assert run.starved == [0]
        eventually(lambda: run.lost)
        assert time.monotonic() - began + BEAT >= LOST_AFTER + STARVED_MOST


@pytest.mark.timing
def test_a_leader_that_came_late_is_watched_too(
    fleet: Callable[..., Fleet], starving: threading.Event
) -> None:
    run = fleet(2)
    run.leader.close()
    run.worker(1)
    look_away(4 * BEAT)
    run.leader = Leader(run.address, PORT, TOKEN, 2)
    run.leader.start()
    eventually(lambda: run.states[1])
    starving.set()
    with standing_still(run.leader):
        look_away(1.5 * LOST_AFTER)
        assert not run.lost
        assert run.starved == [0]


@pytest.mark.timing
def test_a_worker_that_waits_for_a_core_is_not_lost_yet(
    fleet: Callable[..., Fleet], starving: threading.Event
) -> None:
    run = fleet(2)
    starving.set()
    run.worker(1).close()
    eventually(run.leader.joined)
    began = time.monotonic()
    look_away(1.5 * LOST_AFTER)
    assert not run.causes
    assert run.starved == [1]
    eventually(lambda: run.causes)
    assert time.monotonic() - began + BEAT >= GONE_AFTER + STARVED_MOST
    assert (
        "no heartbeat" in run.causes[0].cause.reason
        or "connection broke" in run.causes[0].cause.reason
    )


@pytest.mark.timing
def test_a_worker_that_waits_for_no_core_any_more_is_lost_soon(
    fleet: Callable[..., Fleet], starving: threading.Event
) -> None:
    run = fleet(2)
    starving.set()
    run.worker(1).close()
    eventually(lambda: run.starved)
    starving.clear()
    began = time.monotonic()
    eventually(lambda: run.causes)
    assert time.monotonic() - began < LOST_AFTER


def test_each_side_knows_where_the_other_is(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    link = run.worker(1)
    eventually(lambda: run.states[1])
    here = proc.here()
    assert here
    assert link.state.where == here
    assert run.leader.members[1].where == here


def test_a_clock_counts_the_time_it_did_not_run() -> None:
    class Pause(threading.Event):
        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.waits += 1
            look_away(0.5 if self.waits == 2 else timeout or 0.0)
            return self.waits > 4

    clock = pace.Clock(Pause())
    assert clock.late() == 0.0
    clock.run()
    assert 0.3 < clock.late() < 0.6
    look_away(0.3)
    assert clock.late() > 0.5  # the present tick too


def test_a_leader_left_open_has_no_task_to_complain_of(fleet: Callable[..., Fleet]) -> None:
    run = fleet(2)
    run.worker(1)
    eventually(lambda: run.states[1])
    assert not asyncio.all_tasks(run.leader.listener.loop)


def test_who_is_known_says_no_more_of_itself(fleet: Callable[..., Fleet]) -> None:
    said: list[Hello] = []
    made = fleet(2)
    answer = made.leader.answer

    def listen(path: str, body: bytes) -> Any:
        said.append(decode(Beat, loads(body)).hello)
        return answer(path, body)

    made.leader.answer = listen  # type: ignore[method-assign]
    link = made.worker(1)
    eventually(lambda: len(said) >= 3)
    assert (said[0].plan, said[1], said[2]) == ("p", Hello(), Hello())
    assert made.leader.members[1].hello.plan == "p"
    link.report()  # over a connection of its own
    eventually(lambda: [hello.plan for hello in said].count("p") == 2)


def test_the_plan_of_a_large_fleet_is_small_on_its_way(fleet: Callable[..., Fleet]) -> None:
    made = fleet(2)
    plan = json.dumps([{"name": f"server-{n}", "argv": ["vllm", "serve"]} for n in range(20_000)])
    made.leader.plan(plan)
    answer = made.leader.answer(PLAN, b"")
    assert len(answer.text) < len(plan) / 5
    assert made.leader.answer(PLAN, b"").text is answer.text, "made once, not for each node"
    assert made.worker(1).plan() == plan
    with pytest.raises(ValueError, match="no plan"):
        unpacked("AAAA")


def test_who_waits_to_hand_its_record_over_is_not_lost(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fleet(2)
    link = made.worker(1)
    eventually(link.joined.is_set)
    post, began = link._post, time.monotonic()

    def busy(connection: Any, path: str, beat: Any = None) -> Any:
        if path == DONE and time.monotonic() < began + 3 * LOST_AFTER:
            raise TimeoutError
        return post(connection, path, beat)

    monkeypatch.setattr(link, "_post", busy)
    assert link.done({"a": 1}, 60.0)
    eventually(made.leader.all_done)
    assert not made.leader.members[1].lost
    assert made.records == {1: {"a": 1}}


def test_a_record_that_takes_long_to_keep_keeps_nobody_waiting(fleet: Callable[..., Fleet]) -> None:
    made, over = fleet(3), threading.Event()
    made.leader._on_record = lambda node, record: over.wait(20)
    first, second = made.worker(1), made.worker(2)
    eventually(lambda: made.leader.joined() == [1, 2])
    try:
        assert first.done({}, 20.0)
        made.leader.tell(phase="later")
        eventually(lambda: made.states[2][-1].phase == "later")
        assert not made.leader.all_done(), "it is not kept yet"
    finally:
        over.set()
    assert second.done({}, 20.0)
    eventually(made.leader.all_done)
