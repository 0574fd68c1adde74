"""``nox -s size``: a search in any case, and what it proposes; a sweep as a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ci import run as ci_run
from ci import size
from ci.report import html
from ci.tools import casefile
from steps.core.case.build import load_case
from steps.core.record.records import BenchResult, Point
from tests.ci.test_row import FILE

CASE = """\
test_name: sized
rehearse: true
model: demo/tiny-chat
num_nodes: 1
npu_per_node: 1
deployment:
  - server_cmd: >
      vllm serve demo/tiny-chat --host 0.0.0.0 --port $SERVER_PORT
      --tensor-parallel-size 1 --max-num-seqs 8 --max-model-len 4096
benchmarks:
  acc: {case_type: accuracy, dataset_path: a/b, request_conf: r, dataset_conf: d, baseline: 50}
  chat:
    case_type: performance
    dataset_path: vllm-ascend/gsm8k-lite
    request_conf: vllm_api_stream_chat
    dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
    num_prompts: 16
    max_out_len: 16
    batch_size: 4
    baseline: 1000
    tpot_threshold: 5
"""


@pytest.fixture
def case(tmp_path: Path) -> Path:
    path = tmp_path / "case.yaml"
    path.write_text(CASE)
    return path


def test_a_rehearsed_search_ends_with_a_proposal_that_is_a_case(
    case: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "sized"
    words = [str(case), "--slo", "ttft_p99_ms<=20000", "--within", "1,8", "--dir", str(home)]
    assert size.main(words) == 0
    out = capfd.readouterr().out
    assert "no figures to hold the product to" in out and "chat-capacity" in out
    run = json.loads((home / "run" / "verdict.json").read_text())
    [result] = run["benchmarks"]
    assert result["metrics"]["capacity"] == 8 and "end of the range" in result["note"]
    assert result["metrics"]["goodput"] > 0
    assert all(point["held"] for point in result["points"])
    proposed = load_case(home / "proposal.yaml")
    fixed, search = proposed.benchmarks
    assert (fixed.name, fixed.batch_size) == ("chat", result["metrics"]["capacity_low"])
    assert [str(gate) for gate in fixed.gates] == ["ttft_p99_ms <= 20000"]
    assert search.find is not None and search.baseline == 8
    assert "| batch_size 8 |" in (home / "run" / "summary.md").read_text()
    assert "point batch_size 8" in (home / "run" / "junit.xml").read_text()
    assert "tokens/s/user" in (home / "run" / "report.html").read_text()
    assert case.read_text() == CASE


def test_a_sweep_measures_each_point_on_the_warm_fleet(case: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(CASE)
    chat = content["benchmarks"]["chat"]
    content["benchmarks"] = {
        "loads": {**chat, "sweep": {"batch_size": [2, 8], "max_out_len": [4, 8]}}
    }
    case.write_text(yaml.safe_dump(content, sort_keys=False))
    assert ci_run.main([str(case), "--run-dir", str(tmp_path / "run")]) == 0
    [result] = json.loads((tmp_path / "run" / "verdict.json").read_text())["benchmarks"]
    loads = [(p["load"]["batch_size"], p["load"]["max_out_len"]) for p in result["points"]]
    assert loads == [(2, 4), (2, 8), (8, 4), (8, 8)]
    assert not any(point["wrong"] for point in result["points"]), result["points"]
    assert [p["requests"]["asked"] for p in result["points"]] == [16, 16, 32, 32]
    lines = (tmp_path / "run/node-0/bench/00-loads/point-01/requests.jsonl").read_text()
    assert len(lines.splitlines()) == 16
    words = [str(tmp_path / "run"), "--against", str(tmp_path / "run")]
    assert html.main(words) == 0
    assert "run: front" in (tmp_path / "run" / "report.html").read_text()
    assert html.main([*words[:2], str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no limit is given"),
        (["--slo", "tpot<=50"], "--slo: found 'tpot<=50', unknown metric 'tpot'"),
        (["--slo", "tpot_p99_ms<=50", "--within", "8"], "expected LOW,HIGH"),
        (["--slo", "tpot_p99_ms<=50", "--within", "8,4"], "lower first"),
        (["--slo", "tpot_p99_ms<=50", "--benchmark", "acc"], "measures no performance"),
    ],
)
def test_a_wrong_command_ends_with_2(
    case: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    assert size.main([str(case), *words, "--dir", str(tmp_path / "sized")]) == 2
    assert said in "".join(capfd.readouterr())


def test_the_proposal_keeps_a_load_that_surely_holds() -> None:
    wanted = {"maximise": "batch_size", "subject_to": ["tpot_p99_ms<=50"], "within": [1, 64]}
    metrics = {"capacity": 42.0, "capacity_low": 40.6, "capacity_high": 44.0}
    result = BenchResult("chat", "aisbench", "performance", "pass", metrics=metrics)
    made = size.proposed("chat", {"batch_size": 4, "baseline": 9}, wanted, result)
    assert made["chat"] == {"batch_size": 40, "gates": ["tpot_p99_ms<=50"]}
    assert made["chat-capacity"]["baseline"] == 42 and made["chat-capacity"]["find"] == wanted
    points = (Point({"batch_size": 32}, held=True), Point({"batch_size": 48}, held=False))
    result = BenchResult("c", "d", "performance", "pass", metrics=metrics, points=points)
    made = size.proposed("c", {}, {**wanted, "maximise": "output_throughput"}, result)
    assert made["c"]["batch_size"] == 32


def test_of_two_cases_with_one_name_the_second_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(FILE.replace("name: second", 'name: "first one"'))
    whole, own = casefile.opened(path, "first one-2")
    assert own is whole["test_cases"][1]
    own["prompts"] = ["c"]
    casefile.written(tmp_path / "made.yaml", whole, "first one-2")
    again, _ = casefile.opened(tmp_path / "made.yaml", "first one-2")
    assert [entry.get("prompts") for entry in again["test_cases"]] == [None, ["c"]]
