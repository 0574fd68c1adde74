"""What a new user trips over: odd terminals, odd directories, two runs at once."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.spinner import Spinner

from ci.backends.hosts import check
from ci.report.live import Live
from steps import report, validate
from steps.core import foreign, settings
from steps.core.errors import Exit, InfraError, UsageError
from steps.core.node import wishes
from steps.core.plan import clusters
from steps.core.record.events import Event
from steps.core.record.rundir import RunDir, point_latest, write_text
from tests.core.cases import ROOT
from tests.faults.rehearse import environment


def test_a_directory_without_cases_is_an_error_not_all_of_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "empty").mkdir()
    assert validate.main([str(tmp_path / "empty")]) == Exit.USAGE
    assert validate.main(["configs/quickstart.yaml", str(tmp_path / "empty")]) == Exit.USAGE
    told = capsys.readouterr()
    assert "no problems" not in told.out
    assert f"no case files (*.yaml, *.yml) in {tmp_path / 'empty'}" in told.err


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from steps.core.record.rundir import RunDir\n"
        "RunDir(Path(sys.argv[1])).make().claim(); print('mine', flush=True); sys.stdin.read()"
    )
    run_dir = RunDir(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir.path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout
    try:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(UsageError, match="another run is going on"):
            run_dir.claim()
    finally:
        other.communicate()
    run_dir.claim()
    run_dir.plan.touch()
    with pytest.raises(UsageError, match="holds another run"):
        run_dir.claim()


def test_a_file_named_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("mine")
    point_latest(RunDir(tmp_path / "one").make().path)
    assert (tmp_path / "latest").read_text() == "mine"


def test_a_full_disk_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"verdict\.json"):
        write_text(tmp_path / "verdict.json", "x")


def test_a_run_without_a_plan_can_be_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps({"verdict": "infra", "exit_code": 3}))
    (tmp_path / "summary.md").write_text("# INFRA: no kubeconfig\n")
    assert report.main(["--run-dir", str(tmp_path)]) == Exit.INFRA
    assert capsys.readouterr().out.startswith("# INFRA: no kubeconfig")
    assert report.main(["--run-dir", str(tmp_path), "--format", "json"]) == Exit.INFRA
    assert json.loads(capsys.readouterr().out)["verdict"] == "infra"
    (tmp_path / "verdict.json").write_text("torn")
    assert report.main(["--run-dir", str(tmp_path)]) == Exit.INFRA
    assert "is no verdict" in capsys.readouterr().err


def test_an_excerpt_sends_nothing_to_the_terminal_that_it_would_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "case.yaml").write_text('model: "a\x1b[2J"\n')
    assert validate.main([str(tmp_path / "case.yaml")]) == Exit.USAGE
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert 'model: "a\N{REPLACEMENT CHARACTER}[2J"' in told


def test_a_loopback_that_is_down_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: socket.socket, address: object) -> None:
        raise OSError(101, "Network is unreachable")

    class Down(socket.socket):
        connect = down

    monkeypatch.setattr(clusters.socket, "socket", Down)
    with pytest.raises(InfraError, match="the loopback network is down"):
        clusters.free_network(28999)


def test_the_clock_of_the_live_status_goes_on_between_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live()
    live(Event(time.time(), "r", 0, "load", "waiting", {"missing": "node 1 [server]"}))
    console = Console(file=io.StringIO(), width=200)

    def shown() -> str:
        with console.capture() as capture:
            console.print(Spinner("dots", live))
        return capture.get()

    assert "node 0: load  node 1 [server]" in shown()
    now = time.time()
    monkeypatch.setattr("ci.report.live.time.time", lambda: now + 75)
    assert "75 s" in shown()
    console.width = 20
    assert len(shown().rstrip("\n")) <= 20


@pytest.mark.parametrize("terminal", [True, False])
def test_a_load_lives_on_a_terminal_and_is_a_line_each_half_minute_elsewhere(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Live()
    if terminal:
        live._status = object()
        monkeypatch.setattr(live, "_print", lambda line, **_: print(line))

    def happens(what: str, **fields: object) -> None:
        live(Event(time.time(), "r", 0, "bench", what, fields))

    rows = ["chat: 5 of 9 done, 2 in flight", "decoders: 2 running\x1b[2J\n::error::forged"]
    happens("load", rows=rows, say=False)
    assert live._text().splitlines()[1:] == [rows[0], foreign.line(rows[1])]
    happens("load", rows=rows, say=True)
    happens("load", rows=[1] * 99, say=False)
    assert len(live._text().splitlines()) == 10
    happens("load", rows={"odd": 1}, say=True)
    happens("benchmark", text="chat: pass")
    assert len(live._text().splitlines()) == 1, "it is over"
    said = capsys.readouterr().out
    assert ("chat: 5 of 9 done, 2 in flight; decoders" in said) == (not terminal)
    assert said.count("5 of 9") == (not terminal) and "\x1b" not in said


@pytest.mark.timing
def test_a_worker_that_never_met_its_leader_ends_at_once_when_told_to(tmp_path: Path) -> None:
    """It waited 7.6 s for the leader's word, and 20 s to hand its record to nobody."""
    plan = tmp_path / "plan.json"
    network = clusters.free_network(28999)
    words = ["--case", "quickstart.yaml", "--rehearse", "--network", network]
    made = [
        sys.executable,
        "-m",
        "steps.resolve",
        *words,
        "--output",
        str(plan),
        "--run-dir",
        f"{plan}.d",
    ]
    subprocess.run(made, cwd=ROOT, env=environment(tmp_path), check=True, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "steps.node", "--plan", str(plan), "--node-index", "1",
         "--run-dir", str(tmp_path / "run"), "--output", "events"],
        cwd=ROOT, env=environment(tmp_path), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if '"join"' in line:
            break
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert time.monotonic() - began < 6
    assert (tmp_path / "run" / "node-1" / "record.json").is_file()


@pytest.mark.parametrize(("place", "linked"), [("runs/one", True), ("else/one", False)])
def test_a_link_latest_is_made_in_runs_only(tmp_path: Path, place: str, linked: bool) -> None:
    case = tmp_path / "case.yaml"
    case.write_text("test_name: 1")
    run = [sys.executable, "-m", "ci.run", str(case), "--run-dir", str(tmp_path / place)]
    done = subprocess.run([*run, "--rehearse"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2
    assert (tmp_path / place).is_dir()
    assert (tmp_path / place).with_name("latest").is_symlink() == linked


def test_a_directory_that_cannot_be_read_leaves_no_case_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "closed").mkdir()
    shutil.copy(ROOT / "configs" / "quickstart.yaml", tmp_path)
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert validate.main([str(tmp_path)]) == Exit.USAGE
    assert f"{tmp_path / 'closed'}: cannot be read: Permission denied" in capsys.readouterr().err


def test_what_is_no_regular_file_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert validate.main([str(tmp_path / "pipe.yaml"), "/dev/zero"]) == Exit.USAGE
    assert capsys.readouterr().out.count("is no regular file") == 2
    with pytest.raises(UsageError, match="is no regular file, expected a case file"):
        wishes.find_case(str(tmp_path / "pipe.yaml"))
    with pytest.raises(UsageError, match="is a directory, expected a case file"):
        wishes.find_case(str(tmp_path))


@pytest.mark.parametrize("given", ["abc", "0", "99999", "-1"])
def test_a_control_port_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("MULTINODE_CONTROL_PORT", given)
    with pytest.raises(UsageError, match=f"MULTINODE_CONTROL_PORT: found '{given}'"):
        clusters.free_network(settings.read().control_port)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--hosts", ","], "--hosts: found ',', no host in it"),
        (["--hosts", "a.example,b.example,a.example"], "a.example is named more than once"),
        (["--hosts", "a.example", "--ports", "80,99999,banana"], "found '99999', 'banana', exp"),
    ],
)
def test_hosts_check_refuses_nonsense(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(arguments) == Exit.USAGE
    assert told in capsys.readouterr().err
