"""How a node hears of the end: early, late, or never; and that nobody waits longer than needed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core import settings
from steps.core.case.build import load_case
from steps.core.errors import UsageError
from steps.core.node.rendezvous.leader import Leader
from steps.core.node.rendezvous.link import Link
from steps.core.node.rendezvous.messages import End, Hello, Look, State
from steps.core.node.start import Start
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.clusters import free_network, local
from steps.core.plan.plan import Plan, to_json
from steps.core.plan.resolver import resolve
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir
from steps.node import Program
from steps.node import main as node
from tests.core.cases import ROOT

CAUSE = Cause("preflight", "infra", "a port is taken", node=0, phase="preflight")


@pytest.fixture
def plan() -> Plan:
    case = load_case(ROOT / "configs" / "quickstart.yaml")
    return resolve(case, local(case, rehearsal=Rehearsal()))


@pytest.fixture
def worker(plan: Plan, tmp_path: Path) -> Iterator[Program]:
    program = Program(Start(1, "secret", RunDir(tmp_path / "run").make(), plan=plan))
    assert program.meeting.plan() == plan
    yield program
    program.events.close()


def ended(cause: Cause | None) -> State:
    return State(seq=3, ended=End(cause))


def test_an_end_that_comes_before_there_is_a_run_is_not_forgotten(
    worker: Program, plan: Plan
) -> None:
    worker.inbox.on_state(ended(CAUSE))
    run = worker.make_run(plan)
    assert run.ended.is_set()
    assert run.cause == CAUSE
    assert worker.finish(run) == 3
    assert json.loads(run.dir.record.read_text())["outcome"] == "infra"


def test_a_leader_that_is_lost_before_there_is_a_run_is_not_forgotten(
    worker: Program, plan: Plan
) -> None:
    worker.inbox.on_lost("ConnectionRefusedError")
    run = worker.make_run(plan)
    assert run.ended.is_set()
    assert worker.finish(run) == 3
    assert run.cause
    assert "the leader is lost" in run.cause.reason


def test_a_word_of_the_starter_that_comes_early_is_not_forgotten(
    worker: Program, plan: Plan
) -> None:
    worker.inbox.obey("lost 0 exited with code 9")
    run = worker.make_run(plan)
    assert run.ended.is_set()
    assert "exited with code 9" in run.own_causes()[0].cause.reason


def test_who_is_never_told_of_the_end_does_not_pass(worker: Program, plan: Plan) -> None:
    run = worker.make_run(plan)
    run.ended.set()
    assert worker.finish(run) == 3
    record = json.loads(run.dir.record.read_text())
    assert record["outcome"] == "no-verdict"
    assert "never said" in record["cause"]["reason"]


def test_a_clean_end_is_a_pass(worker: Program, plan: Plan) -> None:
    run = worker.make_run(plan)
    worker.inbox.on_state(ended(None))
    assert worker.finish(run) == 0


def test_an_interrupt_ends_the_wait_for_the_leaders_word(worker: Program, plan: Plan) -> None:
    run = worker.make_run(plan)
    assert run.link
    run.link.joined.set()
    worker.inbox.interrupt("interrupted by SIGINT")
    threading.Timer(0.2, worker.inbox.interrupt, ("interrupted by SIGINT",)).start()
    began = time.monotonic()
    assert worker.finish(run) == 130
    assert time.monotonic() - began < 3  # it would wait 7.6 s


def link(port: int, **more: object) -> Link:
    return Link(
        "127.0.0.1",
        port,
        "secret",
        1,
        "127.0.0.1",
        Hello(),
        look=lambda: Look("load", tuple(PASSED)),
        on_state=lambda state: None,
        on_lost=lambda why: None,
        on_refused=lambda why: None,
    )


PASSED: list[str] = []


@pytest.fixture
def leader() -> Iterator[Leader]:
    made = Leader("127.0.0.1", 0, "secret", 2)
    made.start()
    assert made.listener.server
    made.port = made.listener.server.sockets[0].getsockname()[1]
    yield made
    made.close()


def test_what_a_node_has_passed_only_grows(leader: Leader) -> None:
    joined = link(leader.port)
    for told in (["preflight"], ["preflight", "install"], ["preflight"], []):
        PASSED[:] = told
        joined.report()
    assert leader.members[1].passed == {"preflight", "install"}


@pytest.mark.parametrize("odd", [[3], "x", None, [["a"]], {"a": 1}])
def test_odd_words_of_a_peer_harm_nobody(leader: Leader, odd: object) -> None:
    body = json.dumps({"node": 1, "process": "p", "passed": odd}).encode()
    answer = leader.answer("/v1/beat", body)
    assert answer.status == 400
    assert "passed" in answer.text
    assert all(isinstance(name, str) for m in leader.members.values() for name in m.passed)


def test_a_hurry_ends_the_waits_under_way(leader: Leader) -> None:
    threading.Timer(0.1, leader.hurry).start()
    began = time.monotonic()
    assert leader.wait(lambda: False, 20) is False
    assert leader.wait(lambda: True, 20) is True
    away = link(1)
    threading.Timer(0.1, away.hurry).start()
    assert away.done({}, 20) is False
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("token", ["a b", "a\nb", "a\rb", "schlüssel", "tab\t", "x" * 5000])
def test_a_token_that_no_header_can_carry_is_refused_at_once(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULTINODE_TOKEN", token)
    with pytest.raises(UsageError, match="MULTINODE_TOKEN"):
        _ = settings.read().token
    case = str(ROOT / "configs" / "quickstart.yaml")
    words = ["--case", case, "--rehearse", "--node-index", "1", "--run-dir", str(tmp_path / "r")]
    assert node(words) == 2
    assert token.strip() not in capsys.readouterr().err
    monkeypatch.delenv("MULTINODE_TOKEN")
    file = tmp_path / "token"
    file.write_text(f"x{token}x", encoding="utf-8")
    file.chmod(0o600)
    assert node([*words[:-1], str(tmp_path / "s"), "--token-file", str(file)]) == 2
    assert os.fspath(file) in capsys.readouterr().err


def test_a_control_port_that_is_taken_is_the_cause_of_the_record(tmp_path: Path) -> None:
    case = load_case(ROOT / "configs" / "quickstart.yaml")
    network = free_network(settings.read().control_port)
    plan = resolve(case, local(case, rehearsal=Rehearsal(), network=network))
    path = tmp_path / "plan.json"
    path.write_text(to_json(plan))
    words = ["--plan", str(path), "--run-dir", str(tmp_path / "run"), "--node-index", "0"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((plan.nodes[0].address, plan.cluster.control_port))
        taken.listen()
        argv = [sys.executable, "-m", "steps.node", *words]
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert "harness itself failed" not in done.stdout + done.stderr
    assert done.returncode == 3, done.stderr
    record = json.loads((tmp_path / "run" / "node-0" / "record.json").read_text())
    assert "cannot be opened: Address already in use" in record["cause"]["reason"]
    assert "started twice?" in record["cause"]["hint"]


def test_nobody_waits_for_a_node_that_the_starter_saw_end(tmp_path: Path) -> None:
    words = ["--case", str(ROOT / "configs" / "quickstart.yaml"), "--rehearse", "--bound"]
    words += ["--network", free_network(settings.read().control_port), "--node-index", "0"]
    argv = [sys.executable, "-m", "steps.node", *words, "--run-dir", str(tmp_path / "run")]
    pipe = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, cwd=ROOT, **pipe) as program:  # type: ignore[call-overload]
        try:
            program.stdin.write("lost 1 was killed by signal 9\n")
            program.stdin.flush()
            assert program.wait(15) == 3
            assert "node 1 is lost: was killed by signal 9" in program.stderr.read()
        finally:
            program.kill()
