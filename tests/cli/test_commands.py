"""Command lines: bad input is exit code 2 with a hint and no traceback; --help suffices."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ci import run as ci_run
from steps.core.plan.plan import to_json
from tests.core.cases import ROOT, SPLIT, plan_of

STEPS = ("preflight", "serve", "proxy", "wait", "bench", "prove", "collect", "node")
EVERY = (*STEPS, "resolve", "report", "validate")
#: What a machine of a developer or of CI may have set; none of it may decide a test.
FOREIGN = (
    "KUBECONFIG", "KUBECONFIG_B64", "LWS_WORKER_INDEX", "LWS_LEADER_ADDRESS", "CONFIG_YAML_PATH",
    "CONFIG_BASE_PATH", "GITHUB_STEP_SUMMARY", "MULTINODE_CONTROL_PORT",
)  # fmt: skip

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A command's main with arguments: its exit code, its output, its errors."""

    def run(module: str, *arguments: str) -> tuple[int, str, str]:
        main = importlib.import_module(module).main
        try:
            code = main(list(arguments))
        except SystemExit as leave:
            code = leave.code
        found = capsys.readouterr()
        assert "Traceback" not in found.out + found.err
        return int(code or 0), found.out, found.err

    return run


@pytest.fixture
def case(tmp_path: Path) -> str:
    path = tmp_path / "case.yaml"
    path.write_text(SPLIT)
    return str(path)


@pytest.mark.parametrize("step", EVERY)
def test_help_suffices(call: Call, step: str) -> None:
    code, out, _ = call(f"steps.{step}", "--help")
    assert code == 0
    assert "usage:" in out
    assert len(out.splitlines()) > 8


def test_the_runs_help_names_all_ways(call: Call) -> None:
    code, out, _ = call("ci.run", "--help")
    assert code == 0
    for word in ("--on", "k8s", "hosts", "--rehearse", "--run-dir", "--bench", "--timeout"):
        assert word in out


def test_without_a_cluster_the_three_ways_are_named(call: Call, case: str) -> None:
    code, out, err = call("ci.run", case)
    assert code == 2
    for way in ("--on k8s", "--on hosts", "--rehearse"):
        assert way in err
    assert out == ""


BAD_CASES = {
    "noise": b"\x00\xff" * 100,
    "a list": b"- a\n- b\n",
    "empty": b"",
    "a tab": b"model: m\n\tnum_nodes: 1\n",
    "twice": b"model: m\nmodel: n\n",
    "unclosed": SPLIT.replace("SERVER_PORT\n", "SERVER_PORT 'x\n").encode(),
    "unknown variable": SPLIT.replace("--port $SERVER_PORT", "--port $SERVER_PROT").encode(),
    "wrong number": SPLIT.replace("num_nodes: 2", "num_nodes: 3").encode(),
    "negative": SPLIT.replace("npu_per_node: 4", "npu_per_node: -4").encode(),
    "large": b"#" * (2 << 20),
}


@pytest.mark.parametrize("name", sorted(BAD_CASES))
@pytest.mark.parametrize(
    "command",
    [
        ("ci.run", "{}", "--rehearse"),
        ("steps.validate", "{}"),
        ("steps.resolve", "--case", "{}"),
        ("steps.preflight", "--case", "{}", "--rehearse"),
        ("steps.node", "--case", "{}", "--rehearse", "--node-index", "0"),
    ],
    ids=lambda command: command[0],
)
def test_a_bad_case_is_exit_code_2_everywhere(
    call: Call, tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(BAD_CASES[name])
    module, *arguments = (word.format(path) for word in command)
    code, out, err = call(module, *arguments)
    assert code == 2
    assert "bad.yaml:" in out + err


@pytest.mark.parametrize("name", ["a list", "unknown variable"])
def test_a_refused_case_leaves_a_report_for_ci(call: Call, tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(BAD_CASES[name])
    assert call("ci.run", "bad.yaml", "--rehearse", "--run-dir", "run")[0] == 2
    assert '"verdict": "config"' in (tmp_path / "run" / "verdict.json").read_text()
    assert "<error" in (tmp_path / "run" / "junit.xml").read_text()
    assert (tmp_path / "run" / "summary.md").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-case.yaml",), "no case"),
        (("quickstrat.yaml", "--rehearse"), "Did you mean quickstart.yaml"),
        (("x" * 300,), "no case"),
        (("{case}", "--on", "moon"), "invalid choice"),
        (("{case}", "--fault", "crash@1", "--on", "local"), "Add --rehearse"),
        (("{case}", "--rehearse", "--fault", "explode@1"), "fault"),
        (("{case}", "--rehearse", "--timeout", "lode=5"), "PHASE=SECONDS"),
        (("{case}", "--rehearse", "--timeout", "load=soon"), "soon"),
        (("{case}", "--rehearse", "--timeout", "load=-1"), "-1"),
        (("{case}", "--rehearse", "--timeout", "load=1e9"), "1e9"),
        (("{case}", "--rehearse", "--image", ""), "found '', expected REPOSITORY:TAG"),
        (("{case}", "--rehearse", "--network", "300.1"), "0 to 255"),
        (("{case}", "--rehearse", "--network", "here"), "two numbers"),
        (("{case}", "--rehearse", "--load-seconds", "nan"), "seconds from 0"),
        (("{case}", "--rehearse", "--bench", "quick"), "invalid choice"),
        (("{case}", "--rehearse", "--run-dir", "{case}/x"), "--run-dir"),
        ((), "required"),
    ],
)
def test_a_wrong_command_line_of_a_run(
    call: Call, case: str, arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = call("ci.run", *(word.format(case=case) for word in arguments))
    assert code == 2
    assert words in out + err


@pytest.mark.parametrize("step", STEPS)
def test_a_step_without_a_plan_says_what_to_give(call: Call, step: str) -> None:
    code, _, err = call(f"steps.{step}")
    assert code == 2
    assert "--case" in err


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1}', "\0"])
def test_a_plan_that_is_none(call: Call, tmp_path: Path, step: str, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    code, _, err = call(f"steps.{step}", "--plan", "plan.json")
    assert code == 2
    assert "plan.json" in err


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("index", ["2", "-1"])
def test_a_node_that_is_none(call: Call, tmp_path: Path, step: str, index: str) -> None:
    (tmp_path / "plan.json").write_text(to_json(plan_of(SPLIT)))
    code, _, err = call(f"steps.{step}", "--plan", "plan.json", "--node-index", index)
    assert code == 2
    assert "expected 0 to 1" in err


def test_a_report_of_nothing(call: Call, tmp_path: Path) -> None:
    assert call("steps.report", "--run-dir", "absent")[0] == 2
    (tmp_path / "empty").mkdir()
    code, _, err = call("steps.report", "--run-dir", "empty")
    assert code == 2
    assert "plan.json" in err


def test_resolve_prints_and_writes(call: Call, case: str, tmp_path: Path) -> None:
    code, out, _ = call("steps.resolve", "--case", case, "--hosts", "10.0.0.1,10.0.0.2")
    assert code == 0
    assert "node 1: 10.0.0.2 worker, decoder" in out
    code, out, _ = call("steps.resolve", "--case", case, "--format", "json", "--output", "p.json")
    assert code == 0
    assert (tmp_path / "p.json").read_text() == out.rstrip("\n") + "\n"
    code, _, err = call("steps.resolve", "--case", case, "--hosts", "10.0.0.1")
    assert code == 2
    assert "expected 2" in err
    assert call("steps.resolve", "--case", case, "--output", "absent/p.json")[0] == 3


def test_validate_says_all_at_once_in_json(call: Call, case: str) -> None:
    import json

    path = Path(case)
    path.write_text(SPLIT.replace("model:", "modle:").replace("npu_per_node: 4", "npu_per_node: x"))
    code, out, _ = call("steps.validate", "--format", "json", case)
    assert code == 2
    found = json.loads(out)
    assert {"file", "line", "column", "rule", "severity", "message", "hint"} <= set(found[0])
    assert {entry["line"] for entry in found} >= {2, 4}
    assert any("Did you mean 'model'" in entry["hint"] for entry in found)


def test_the_real_commands_without_a_traceback() -> None:
    """A few through the interpreter, as a shell sees them."""
    for arguments, code in (
        (["-m", "ci.run", "nothing.yaml"], 2),
        (["-m", "invoke", "plan", "--case", "nothing.yaml"], 2),
        (["-m", "invoke", "--list"], 0),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr + done.stdout


def test_the_parsers_defaults_are_those_of_the_docs() -> None:
    found = ci_run.main.parser().parse_args(["case.yaml"])
    assert (found.on, found.rehearse, found.bench, found.run_dir) == (None, False, None, None)
