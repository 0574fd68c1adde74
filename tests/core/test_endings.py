"""How a node hears of the end: early, late, or never; and that nobody waits longer than needed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.core import settings
from steps.core.case.build import load_case
from steps.core.errors import UsageError
from steps.core.node.rendezvous import Leader, Link
from steps.core.node.start import Start
from steps.core.plan.cluster import Rehearsal
from steps.core.plan.clusters import local
from steps.core.plan.plan import Plan
from steps.core.plan.resolver import resolve
from steps.core.record.records import Cause, to_dict
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
    yield program
    program.events.close()


def ended(cause: Cause | None) -> dict[str, object]:
    return {"seq": 3, "ended": {"cause": to_dict(cause) if cause else None}}


def test_an_end_that_comes_before_there_is_a_run_is_not_forgotten(
    worker: Program, plan: Plan
) -> None:
    worker._on_state(ended(CAUSE))
    run = worker._make_run(plan)
    assert run.ended.is_set()
    assert run.cause == CAUSE
    assert worker._finish(run) == 3
    assert json.loads(run.dir.record.read_text())["outcome"] == "infra"


def test_a_leader_that_is_lost_before_there_is_a_run_is_not_forgotten(
    worker: Program, plan: Plan
) -> None:
    worker._on_lost("ConnectionRefusedError")
    run = worker._make_run(plan)
    assert run.ended.is_set()
    assert worker._finish(run) == 3
    assert run.cause
    assert "the leader is lost" in run.cause.reason


def test_a_word_of_the_starter_that_comes_early_is_not_forgotten(
    worker: Program, plan: Plan
) -> None:
    worker._obey("lost 0 exited with code 9")
    run = worker._make_run(plan)
    assert run.ended.is_set()
    assert "exited with code 9" in run.own_causes()[0]["reason"]


def test_who_is_never_told_of_the_end_does_not_pass(worker: Program, plan: Plan) -> None:
    run = worker._make_run(plan)
    run.ended.set()
    assert worker._finish(run) == 3
    record = json.loads(run.dir.record.read_text())
    assert record["outcome"] == "no-verdict"
    assert "never said" in record["cause"]["reason"]


def test_a_clean_end_is_a_pass(worker: Program, plan: Plan) -> None:
    run = worker._make_run(plan)
    worker._on_state(ended(None))
    assert worker._finish(run) == 0


def test_an_interrupt_ends_the_wait_for_the_leaders_word(
    worker: Program, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = worker._make_run(plan)
    monkeypatch.setattr(worker, "_joined", lambda: True)
    worker._interrupt("interrupted by SIGINT")
    threading.Timer(0.2, worker._interrupt, ("interrupted by SIGINT",)).start()
    began = time.monotonic()
    assert worker._finish(run) == 130
    assert time.monotonic() - began < 3  # it would wait 7.6 s


def link(port: int, **more: object) -> Link:
    return Link(
        "127.0.0.1",
        port,
        "secret",
        1,
        "127.0.0.1",
        {},
        look=lambda: {"phase": "load", "passed": PASSED, "progress": {}, "causes": []},
        on_state=lambda state: None,
        on_lost=lambda why: None,
        on_refused=lambda why: None,
    )


PASSED: list[str] = []


@pytest.fixture
def leader() -> Iterator[Leader]:
    made = Leader("127.0.0.1", 0, "secret", 2)
    made.start()
    assert made._server
    made.port = made._server.sockets[0].getsockname()[1]
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
    status, _, _ = 0, {}, False
    try:
        status, _, _ = leader.answer("/v1/beat", {"node": 1, "process": "p", "passed": odd})
    except TypeError:  # the connection answers 400
        status = 400
    assert status in (200, 400)
    assert all(isinstance(name, str) for name in leader.members[1].passed)


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
