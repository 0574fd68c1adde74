"""replay: an earlier run once more, with what its plan says of how it was made."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ci import replay
from steps.core.errors import UsageError
from steps.core.plan.budgets import REHEARSAL_BUDGETS
from steps.core.plan.cluster import Cluster, ClusterNode, Rehearsal
from steps.core.plan.plan import Plan, to_json
from steps.core.plan.profile import masked
from steps.core.record.rundir import RunDir
from tests.core.cases import ROOT, SPLIT, plan_of
from tests.faults.rehearse import environment, left_of, rehearse


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run, as far as a replay reads it."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "case.yaml").write_text(SPLIT)
    return path


def write(run: Path, plan: Plan) -> Path:
    (run / "plan.json").write_text(to_json(plan))
    return run


def asked(run: Path, plan: Plan) -> list[str]:
    return list(replay.options(plan, run / "case.yaml"))


def test_a_failed_rehearsal_fails_the_same_way(tmp_path: Path) -> None:
    first = rehearse("quickstart.yaml", tmp_path, "--fault", "crash=3@1:load")
    assert first.code == 1, first.output
    again = tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-m", "ci.replay", str(first.path), "--run-dir", str(again)],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The verdict is the same: startup, exit, node 1, server, load, exit code 3" in (
        done.stdout
    )
    assert "The plan is the same, but for the run id." in done.stdout
    verdict = json.loads((again / "verdict.json").read_text())
    assert (verdict["cause"]["node"], verdict["cause"]["exit_code"]) == (1, 3)
    assert verdict["run"] != first.verdict["run"]
    assert left_of(replace(first, path=again), tmp_path) == []


def test_what_a_plan_says_becomes_the_command_line(run: Path) -> None:
    faults = ("crash@1:load", "kill9@0.proxy:bench")
    plan = plan_of(SPLIT)
    plan = replace(plan, cluster=replace(plan.cluster, rehearsal=Rehearsal(2.5, faults)))
    defaults = dict(REHEARSAL_BUDGETS)
    budgets = {**defaults, "load": replace(defaults["load"], seconds=7.5)}
    words = asked(run, replace(plan, budgets=budgets))
    text = " ".join(words)
    assert "--rehearse --load-seconds 2.5" in text
    assert "--fault crash@1:load --fault kill9@0.proxy:bench" in text
    assert "--timeout load=7.5" in text
    assert text.count("--timeout") == 1


@pytest.mark.parametrize("backend", ["hosts", "k8s"])
def test_a_run_goes_where_it_was(run: Path, backend: str) -> None:
    nodes = (ClusterNode(0, "10.1.0.1", "eth0"), ClusterNode(1, "10.1.0.2", "eth0"))
    cluster = Cluster("a3", backend, nodes)
    words = asked(run, replace(plan_of(SPLIT), cluster=cluster))
    where = {"hosts": ("--hosts", "10.1.0.1,10.1.0.2"), "k8s": ("--profile", "a3")}[backend]
    assert words[:4] == ["--on", backend, *where]
    assert "--rehearse" not in words


def test_the_network_is_the_same_unless_it_is_taken(run: Path) -> None:
    import socket

    plan = plan_of(SPLIT)
    first = plan.cluster.nodes[0].address
    with socket.socket() as other:
        other.bind((first, 0))
        other.listen()
        port = other.getsockname()[1]
        taken = replace(plan, cluster=replace(plan.cluster, control_port=port))
        assert "--network" not in asked(run, taken)
    assert ".".join(first.split(".")[1:3]) in asked(run, taken)


@pytest.mark.parametrize("absent", ["case.yaml", "plan.json"])
def test_a_run_without_case_or_plan_is_refused(run: Path, absent: str) -> None:
    write(run, plan_of(SPLIT))
    (run / absent).unlink()
    with pytest.raises(UsageError, match=f"has no {absent}"):
        replay.replay(run, None, [])


def test_a_run_that_is_not_there_or_of_another_schema_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        replay.replay(tmp_path / "none", None, [])
    write(run, replace(plan_of(SPLIT), schema=99))
    with pytest.raises(UsageError, match="plan schema 99, expected 1"):
        replay.replay(run, None, [])


def test_another_version_of_the_harness_is_a_warning(run: Path) -> None:
    assert list(replay.warnings(plan_of(SPLIT))) == []
    told = list(replay.warnings(replace(plan_of(SPLIT), harness="0.0.1")))
    assert len(told) == 1
    assert "version 0.0.1" in told[0]


def test_the_case_is_the_copy_when_its_file_has_changed(run: Path, tmp_path: Path) -> None:
    from steps.core.case.build import load_case
    from steps.core.record.rundir import RunDir

    own = tmp_path / "own.yaml"
    own.write_text(SPLIT)
    plan = replace(plan_of(SPLIT), case_file=str(own), case_sha256=load_case(own).sha256)
    assert replay.case_of(RunDir(run), plan) == own
    own.write_text(SPLIT + "# changed\n")
    assert replay.case_of(RunDir(run), plan) == run / "case.yaml"


def test_differences_name_the_place() -> None:
    then = {"a": [1, {"b": 2}], "c": 1}
    assert list(replay.differences(then, {"a": [1, {"b": 3}], "c": 1})) == ["plan.a[1].b: 2, now 3"]
    assert list(replay.differences(then, then)) == []
    assert list(replay.differences({"a": [1]}, {"a": [1, 2]})) == ["plan.a: 1 entries, now 2"]


def test_a_profile_is_its_own_file_while_that_is_what_it_was(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "lab.yaml"
    own.write_text(
        "image: a/b:1\nsecret_env: {HF_TOKEN: hub/token}\nenv: {API_KEY: abcd1234efgh}\n"
    )
    kept = RunDir(run)
    kept.profile("lab").parent.mkdir()
    kept.profile("lab").write_text(masked(own))
    assert "abcd1234efgh" not in kept.profile("lab").read_text()
    cluster = Cluster("lab", "k8s", (ClusterNode(0, "10.1.0.1"), ClusterNode(1, "10.1.0.2")))
    plan = replace(plan_of(SPLIT), cluster=cluster)
    assert replay.profile_of(kept, plan) == str(own)
    own.write_text("image: a/b:2\n")
    copy = replay.profile_of(kept, plan)
    assert copy == str(kept.profile("lab"))
    assert any("secrets are left out" in text for text in replay.warnings(plan, copy))
