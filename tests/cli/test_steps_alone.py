"""Steps that compose: each alone, all in a row, and the verdict that ``node`` would give."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steps import serve
from steps.byhand import status
from steps.core.node.alone import holding
from steps.core.record import telemetry
from tests.cli.byhand import Hand, outline
from tests.core.cases import ROOT
from tests.core.waiting import alive, eventually
from tests.faults.rehearse import Outcome, rehearse
from tests.realpath import fleet
from tests.realpath.test_local import INSTALL, notes

QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
GROUP = str(ROOT / "configs" / "cpu" / "smollm2-dp2.yaml")
EXTERNAL = str(ROOT / "configs" / "GLM-5-W8A8-external-dp.yaml")
DOING = ("preflight", "wait", "check", "bench", "prove", "collect")
ROW = ("serve", "--detach", "wait", "bench", "prove", "collect", "stop", "report")


@pytest.fixture
def hand(tmp_path: Path):
    made = Hand(tmp_path / "user")
    yield made
    if (made.place / "runs").exists():
        made("stop")


@pytest.mark.parametrize("case", [QUICKSTART, GROUP, EXTERNAL], ids=["split", "group", "external"])
def test_each_step_alone(hand: Hand, tmp_path: Path, case: str) -> None:
    assert hand("plan", "--case", case, "--rehearse") == 0, hand.said
    assert hand("preflight") == 0, hand.said
    assert hand("serve", "--detach") == 0, hand.said
    for step in ("wait", "check", "bench", "prove"):
        assert hand(step) == 0, hand.said
    assert hand("status") == 0, hand.said
    assert "serve: up" in hand.said
    assert hand("stop") == 0, hand.said
    assert hand("collect") == 0, hand.said
    assert hand("report") == 0, hand.said
    assert hand.left() == []
    whole = rehearse(case, tmp_path, draw=False)
    assert outline(hand.json("verdict.json")) == outline(whole.verdict)
    phases = {phase["name"] for phase in hand.json("verdict.json")["phases"]}
    assert {"preflight", "load", "probe", "bench", "proof", "stop", "collect"} <= phases


@pytest.mark.parametrize("case", [QUICKSTART, GROUP, EXTERNAL], ids=["split", "group", "external"])
def test_all_in_a_row(hand: Hand, case: str) -> None:
    assert hand("plan", "--case", case, "--rehearse", *ROW) == 0, hand.said
    assert hand.json("verdict.json")["verdict"] == "pass"
    assert "step preflight of node 0" in hand.said
    assert hand.left() == []


@pytest.mark.parametrize("shape", [fleet.case, fleet.split], ids=["group", "split"])
def test_a_row_on_engines(tmp_path: Path, shape) -> None:
    hand = Hand(tmp_path / "user", **fleet.environment(tmp_path))
    path = fleet.written(tmp_path, shape(2))
    assert hand("plan", "--case", str(path), *ROW) == 0, hand.said
    verdict = hand.json("verdict.json")
    assert (verdict["verdict"], verdict["rehearsed"]) == ("pass", False)
    assert [result["driver"] for result in verdict["benchmarks"]] == ["aisbench"]
    assert hand.left() == []


def by_hand(hand: Hand, tmp_path: Path, data: fleet.Case, *steps: str) -> None:
    """A fleet of the tests' engine, each step typed."""
    hand.env.update(fleet.environment(tmp_path))
    for words in (["plan", "--case", str(fleet.written(tmp_path, data))], *map(str.split, steps)):
        assert hand(*words) == 0, hand.said


SERVE = ("serve --detach --node-index 0", "serve --detach --node-index 1")
UP = ("pool --detach", *SERVE, "proxy --detach", "wait")


@pytest.mark.parametrize("shape", ["group", "routing"])
def test_each_step_alone_on_engines(hand: Hand, tmp_path: Path, shape: str) -> None:
    data = fleet.case(2) if shape == "group" else fleet.routing(fleet.pool_port())
    by_hand(hand, tmp_path, data, "preflight", *UP, "check", "bench", "prove", "stop", "collect")
    assert hand("report") == 0, hand.said
    verdict = hand.json("verdict.json")
    assert (verdict["verdict"], verdict["rehearsed"]) == ("pass", False)
    assert not [check for check in verdict["checks"] if check["name"].startswith("step ")]
    for node in (0, 1):
        tracks = telemetry.read(hand.run / f"node-{node}" / telemetry.NAME)
        assert tracks[telemetry.MACHINE].seen
        assert bool({*tracks} - {telemetry.MACHINE}) == (shape == "routing" or node == 0)
    assert "## Where the time went" in (hand.run / "summary.md").read_text()
    assert hand.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("step", ["pool", "proxy"])
def test_a_keeper_of_one_process_that_is_killed_leaves_the_others_alone(
    hand: Hand, tmp_path: Path, step: str, number: int
) -> None:
    by_hand(hand, tmp_path, fleet.routing(fleet.pool_port()), *UP)
    os.kill(hand.held(0, step)["pid"], number)
    eventually(lambda: not holding.read(hand.run / "steps" / f"0-{step}.json").alive, 20)
    assert hand("status") == (3 if number == signal.SIGKILL else 0), hand.said
    assert hand.said.count(": up, ") == 3, hand.said
    assert hand("prove") == 3, hand.said
    assert hand("stop", "report") == 3, hand.said
    assert hand.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_short_steps_that_are_killed_leave_the_fleet_alone(hand: Hand, number: int) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse", "serve", "--detach", "wait") == 0
    for step in ("check", "prove", "collect", "report", "stop"):
        doing = hand.begin(step)
        if step not in ("report", "stop"):
            eventually((hand.run / "steps" / f"0-{step}.json").exists, 20)
        doing.send_signal(number)
        doing.communicate(timeout=30)
        assert hand("status") == 0, hand.said
        assert hand.said.count("serve: up") == 2, hand.said
    assert hand("bench", "prove", "stop", "report", seconds=120) == 0, hand.said
    assert hand.left() == []


def test_a_row_that_needs_packages(tmp_path: Path) -> None:
    hand = Hand(tmp_path / "user", **fleet.environment(tmp_path))
    path = fleet.written(tmp_path, fleet.case(1, **INSTALL))
    assert hand("plan", "--case", str(path), *ROW) == 3, hand.said
    assert hand.json("verdict.json")["cause"]["reason"] == "not done: install of node 0"
    assert hand("install", "report") == 0, hand.said
    assert len(notes(tmp_path)) == 1
    rehearsed = Hand(tmp_path / "rehearsed", **fleet.environment(tmp_path))
    assert rehearsed("plan", "--case", str(path), "--rehearse", *ROW) == 0, rehearsed.said
    assert len(notes(tmp_path)) == 1


def test_the_roles_are_rows(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART, "lead") == 0, hand.said
    names = [check["name"] for check in hand.json("verdict.json")["checks"]]
    assert not [name for name in names if name.startswith("step ")]
    assert hand.left() == []


def test_a_failing_step_ends_the_row_and_the_closing_ones_happen(hand: Hand) -> None:
    faulty = ("--rehearse", "--fault", "crash@1:load")
    assert hand("plan", "--case", QUICKSTART, *faulty, *ROW, crashes=True) == 1, hand.said
    verdict = hand.json("verdict.json")
    assert (verdict["verdict"], verdict["cause"]["node"]) == ("startup", 1), hand.said
    assert "bench: left out" in hand.said
    assert hand.left() == []


def test_a_row_whose_plan_fails_touches_no_earlier_run(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART) == 0, hand.said
    assert hand("plan", "--case", "nothing.yaml", *ROW) == 2, hand.said
    assert not (hand.run / "verdict.json").exists()


def test_a_new_plan_leaves_what_is_held_in_its_own_directory(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse") == 0, hand.said
    assert hand("serve", "--detach") == 0, hand.said
    first = hand.run
    assert hand("plan", "--case", QUICKSTART, "--rehearse") == 0, hand.said
    assert hand("stop", "--run-dir", str(first)) == 0, hand.said
    assert sorted(path.name for path in hand.run.iterdir()) == ["case.yaml", "plan.json"]
    record = json.loads((first / "node-1" / "record.json").read_text())
    assert [(step["name"], step["outcome"]) for step in record["steps"]] == [("serve", "done")]


def test_a_step_that_is_left_out_is_named_and_never_green(hand: Hand) -> None:
    row = [word for word in ROW if word != "prove"]
    assert hand("plan", "--case", QUICKSTART, *row) == 3, hand.said
    cause = hand.json("verdict.json")["cause"]
    assert cause["reason"] == "not done: prove of node 0"
    assert "invoke prove" in cause["hint"]


def test_terminals_side_by_side_and_a_step_done_twice(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse") == 0, hand.said
    terminals = [hand.begin("serve", "--node-index", index) for index in ("0", "1")]
    eventually(lambda: all((hand.run / f"node-{i}" / "record.json").exists() for i in (0, 1)), 20)
    eventually(lambda: hand.held(0)["processes"], 20)
    assert hand("proxy", "--detach") == 0, hand.said
    assert hand("wait", "bench", "bench", "prove", seconds=60) == 0, hand.said
    record = hand.json("node-0/record.json")
    assert [result["name"] for result in record["benchmarks"]] == ["chat", "chat"]
    assert len({result["directory"] for result in record["benchmarks"]}) == 2
    for again in (["serve", "--node-index", "0"], ["serve", "--detach"], ["proxy"], ["preflight"]):
        assert hand(*again) == 2, hand.said
        assert "is going on in this run directory" in hand.said
        assert "invoke stop" in hand.said
    for terminal in terminals:
        assert terminal.poll() is None
        terminal.send_signal(signal.SIGTERM)
        text = terminal.communicate(timeout=30)[0]
        assert terminal.returncode == 0, text
    assert hand("stop", "collect", "report") == 0, hand.said
    [shown] = hand.json("verdict.json")["benchmarks"]
    assert "measured 2 times (00-chat pass, 00-chat.2 pass)" in shown["note"]
    assert hand.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("step", ["wait", "bench"])
def test_a_doing_step_that_is_killed_leaves_the_others_alone(
    hand: Hand, step: str, number: int
) -> None:
    plan = [QUICKSTART, "--rehearse", *(["--fault", "slow=4@1"] if step == "bench" else [])]
    assert hand("plan", "--case", *plan, "serve", "--detach") == 0, hand.said
    if step == "bench":
        assert hand("wait") == 0, hand.said
    doing = hand.begin(step)
    eventually((hand.run / "steps" / f"0-{step}.json").exists, 20)
    eventually(lambda: any(s["name"] == step for s in hand.json("node-0/record.json")["steps"]))
    doing.send_signal(number)
    doing.communicate(timeout=30)
    assert hand("status") in (0, 3), hand.said
    assert hand.said.count("serve: up") == 2, hand.said
    assert hand("wait", "bench", "prove", "stop", "report", seconds=120) == 0, hand.said
    assert hand.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_a_keeper_that_is_killed_is_found(hand: Hand, number: int) -> None:
    assert hand("plan", "--case", QUICKSTART, "serve", "--detach", "wait") == 0, hand.said
    server, other = hand.server(1), hand.server(0)
    os.kill(hand.held(1)["pid"], number)
    eventually(lambda: not alive(server), 20)
    assert alive(other)
    assert hand("bench") == 3, hand.said
    assert "serve of node 1" in hand.said
    assert hand("status") == (3 if number == signal.SIGKILL else 0), hand.said
    assert ("died" in hand.said) == (number == signal.SIGKILL), hand.said
    assert hand("stop", "report") == 3, hand.said
    assert hand.json("verdict.json")["cause"]["node"] == 1
    assert hand.left() == []


def test_a_server_that_dies_in_a_benchmark_is_a_crash(hand: Hand) -> None:
    slow = ("--rehearse", "--fault", "slow=4@1")
    assert hand("plan", "--case", QUICKSTART, *slow, "serve", "--detach", "wait") == 0, hand.said
    doing = hand.begin("bench")
    eventually((hand.run / "node-0" / "bench" / "00-chat").exists, 20)
    os.kill(hand.server(1), signal.SIGKILL)
    text = doing.communicate(timeout=30)[0]
    assert doing.returncode == 1, text
    assert hand("status") == 3, hand.said
    assert "killed by signal 9" in hand.said
    assert hand("collect", "stop", "report") == 1, hand.said
    cause = hand.json("verdict.json")["cause"]
    found = (cause["verdict"], cause["node"], cause["process"], cause["phase"])
    assert found == ("crash", 1, "server", "bench")
    assert hand.left() == []


def test_a_server_that_died_meanwhile(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse", "serve", "--detach", "wait") == 0
    os.kill(hand.server(1), signal.SIGKILL)
    eventually(lambda: hand.held(1).get("ended"), 20)
    for step in ("check", "bench", "prove"):
        assert hand(step) == 3, hand.said
        assert "error: node 1" in hand.said
        assert "server: was killed by signal 9" in hand.said
        assert "invoke report" in hand.said
    assert hand("wait") == 1, hand.said
    assert "error: node 1 (worker, decoder) server: was killed by signal 9" in hand.said
    assert hand("stop", "report") == 1, hand.said
    assert hand.json("verdict.json")["cause"]["kind"] == "exit"


@pytest.mark.parametrize("fault", ["kill9@0.proxy:bench", "crash@0.proxy:load+0.5"])
def test_a_signal_that_a_fault_asks_for_is_sent_in_a_row(
    hand: Hand, tmp_path: Path, fault: str
) -> None:
    words = ("--rehearse", "--fault", fault)
    assert hand("plan", "--case", QUICKSTART, *words, *ROW, crashes=True) == 1, hand.said
    assert (
        f"fault {fault}: signal to pid"
        in hand.said + (hand.run / "node-0/keeper-serve.log").read_text()
    )
    whole = rehearse(QUICKSTART, tmp_path, *words, draw=False)
    assert outline(hand.json("verdict.json"))["cause"] == outline(whole.verdict)["cause"]
    assert hand.left() == []


def test_a_signal_to_a_node_program_goes_to_its_keeper_once(hand: Hand) -> None:
    words = ("--rehearse", "--fault", "kill9@1.node:probe")
    assert hand("plan", "--case", QUICKSTART, *words, "serve", "--detach", "wait") == 3, hand.said
    assert hand("serve", "--detach", "--node-index", "1", "wait") == 0, hand.said
    assert hand("stop", "report") == 3, hand.said
    assert hand.left() == []


def test_nothing_detached_survives_its_limit(hand: Hand) -> None:
    row = ("serve", "--detach", "--limit", "3")
    assert hand("plan", "--case", QUICKSTART, *row) == 0, hand.said
    eventually(lambda: not hand.left(), 20)
    assert hand("status") == 0, hand.said
    assert "its time limit passed" in hand.said


def test_hosts_by_hand(tmp_path: Path) -> None:
    leader, worker = (Hand(tmp_path / name, **fleet.environment(tmp_path)) for name in "lw")
    network = fleet.free_network(28999)
    hosts = f"127.{network}.1,127.{network}.2"
    path = fleet.written(tmp_path, fleet.case(2))
    copy = str(tmp_path / "the-plan.json")
    assert leader("plan", "--case", str(path), "--hosts", hosts, "--output", copy) == 0, leader.said
    row = ("serve", "--detach", "--node-index", "1")
    assert worker(row[0], "--plan", copy, *row[1:]) == 0, worker.said
    assert worker.run.name == leader.run.name
    row = ("serve", "--detach", "--node-index", "0", "wait", "bench", "prove", "stop", "report")
    assert leader(*row) == 3, leader.said
    assert "node-1: known by their health only" in leader.said
    assert "node 1 left no record" in leader.said
    assert worker("stop", "collect", "--node-index", "1") == 0, worker.said
    assert leader("fetch", "--from", str(worker.run), "report") == 0, leader.said
    assert leader.json("verdict.json")["verdict"] == "pass"
    assert leader.left() + worker.left() == []


SLOW = """
from steps.core.node import alone
start = lambda run: run.sleep(60)
raise SystemExit(alone.step("serve", "", lambda _: [("pool", start)], kinds=("server",))())
"""


@pytest.mark.parametrize("number", [0, signal.SIGTERM], ids=["limit", "TERM"])
def test_a_keeper_ends_while_it_still_starts(hand: Hand, number: int) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse") == 0, hand.said
    words = ["--node-index", "0", "--detach", "--limit", "60" if number else "2"]
    argv = [sys.executable, "-c", SLOW, *words]
    env = {**hand.env, "PYTHONPATH": str(ROOT)}
    slow = subprocess.Popen(argv, cwd=hand.place, env=env, stderr=subprocess.PIPE, text=True)
    if number:
        eventually((hand.run / "node-0" / "record.json").exists, 20)
        os.kill(hand.held(0)["pid"], number)
    said = slow.communicate(timeout=30)[1]
    assert slow.returncode == (130 if number else 4), said
    assert ("told to end" if number else "its time limit passed") in said
    assert hand.left() == []


@pytest.mark.parametrize("limit", ["-1", "0", "inf", "nan", "soon"])
def test_a_limit_that_is_none(hand: Hand, limit: str) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse") == 0, hand.said
    assert hand("serve", "--detach", f"--limit={limit}") == 2, hand.said
    assert f"found '{limit}', expected seconds" in hand.said
    assert hand.left() == []


def test_the_roles_across_hosts(tmp_path: Path) -> None:
    leader, worker = (Hand(tmp_path / name, **fleet.environment(tmp_path)) for name in "lw")
    network = fleet.free_network(28999)
    path, copy = fleet.written(tmp_path, fleet.case(2)), str(tmp_path / "the-plan.json")
    plan = ("plan", "--case", str(path), "--hosts", f"127.{network}.1,127.{network}.2")
    assert leader(*plan, "--output", copy) == 0, leader.said
    works = worker.begin("work", "--plan", copy, "--node-index", "1")
    assert leader("lead", "--node-index", "0") == 3, leader.said
    assert "node 1 left no record" in leader.said
    said = works.communicate(timeout=30)[0]
    assert works.returncode == 1, said
    assert "a rank of the group is gone" in said, "the leader's is, once all was judged"
    assert leader("fetch", "--from", str(worker.run), "report") == 0, leader.said
    checks = leader.json("verdict.json")["checks"]
    assert not [check for check in checks if check["name"].startswith("step ")]
    assert leader.left() + worker.left() == []


# Bad input


def test_no_plan(hand: Hand) -> None:
    for step in (*DOING, "serve", "proxy", "pool"):
        assert hand(step) == 2, hand.said
        assert "invoke plan --case" in hand.said or "--case" in hand.said
    for step in ("status", "stop"):
        assert hand(step) == 2, hand.said
        assert "plan.json" in hand.said


def test_a_plan_of_another_version(hand: Hand) -> None:
    (hand.place / "runs" / "latest").mkdir(parents=True)
    (hand.place / "runs" / "latest" / "plan.json").write_text('{"schema": 99}')
    assert hand("serve") == 2, hand.said
    assert "plan schema 99" in hand.said


def test_a_plan_for_other_addresses(hand: Hand, tmp_path: Path) -> None:
    path = fleet.written(tmp_path, fleet.case(2))
    hand.env.update(fleet.environment(tmp_path))
    row = ("plan", "--case", str(path), "--hosts", "198.51.100.1,198.51.100.2")
    assert hand(*row) == 0, hand.said
    assert hand("serve") == 2, hand.said
    assert "the plan is for 198.51.100.1, 198.51.100.2; this machine has" in hand.said
    assert hand("serve", "--detach", "--node-index", "0") == 3, hand.said
    assert "the plan gives this node the address 198.51.100.1" in hand.said


def test_another_plan_in_the_directory(hand: Hand, tmp_path: Path) -> None:
    assert hand("plan", "--case", QUICKSTART, "--output", str(tmp_path / "one.json")) == 0
    first = hand.run
    assert hand("plan", "--case", QUICKSTART, "--network", "77.77") in (0, 2)
    assert hand("plan", "--case", GROUP, "--rehearse") == 0, hand.said
    row = ("--plan", str(tmp_path / "one.json"), "--run-dir", str(hand.run))
    assert hand("preflight", *row) == 2, hand.said
    assert "is not the plan of" in hand.said
    assert hand("fetch", "--from", str(first)) == 2, hand.said
    assert "is of another plan" in hand.said


def test_a_run_that_is_over_is_no_place_for_steps(
    hand: Hand, passed: Outcome, tmp_path: Path
) -> None:
    whole = shutil.copytree(passed.path, tmp_path / "run")
    assert hand("bench", "--run-dir", str(whole)) == 2, hand.said
    assert "is the record of a run that is over" in hand.said


def test_a_whole_run_that_goes_on_is_left_alone(hand: Hand) -> None:
    import fcntl

    assert hand("plan", "--case", QUICKSTART) == 0, hand.said
    handle = os.open(hand.run, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert hand("serve", "--detach") == 2, hand.said
    os.close(handle)
    assert "a whole run is going on" in hand.said


ODD = ("", "7", "[]", '{"since": "soon"}', '{"until": 1e300, "since": 1e300}', '{"cause": 3}')


def test_an_odd_file_of_a_step_hides_nothing(
    hand: Hand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hand("plan", "--case", QUICKSTART, "--rehearse", "serve", "--detach") == 0, hand.said
    path = hand.run / "steps" / "1-serve.json"
    known = json.loads(path.read_text())
    for odd in ODD:
        path.write_text(json.dumps({**known, **json.loads(odd)}) if odd.startswith("{") else odd)
        assert status.main(["--run-dir", str(hand.run)]) in (0, 3)
        assert serve.main(["--node-index", "1", "--run-dir", str(hand.run)]) == 2
        said = "".join(capsys.readouterr())
        assert "serve of node 1" in said
        assert "itself failed" not in said, said
    path.write_text(json.dumps(known))
    assert hand("stop") == 0, hand.said
    assert hand.left() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_somebody_else_s_directory(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART) == 0, hand.said
    os.chown(hand.run, 12345, 12345)
    assert hand("serve", "--detach") == 2, hand.said
    assert "belongs to another user" in hand.said


def test_a_keeper_on_another_host_is_not_signalled(hand: Hand) -> None:
    assert hand("plan", "--case", QUICKSTART, "serve", "--detach") == 0, hand.said
    path = hand.run / "steps" / "1-serve.json"
    text = path.read_text()
    path.write_text(text.replace(f'"{socket.gethostname()}"', '"elsewhere"'))
    assert hand("stop") == 3, hand.said
    assert "On elsewhere: invoke stop" in hand.said
    path.write_text(text)
    assert hand("stop") == 0, hand.said
    assert hand.left() == []
    shutil.rmtree(hand.run)
