"""All problems at once: one of form stops only the rules that cannot be asked without it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ci import run
from steps.core.case.build import load_case
from steps.core.errors import CaseError
from steps.lint.examples import BASES, Example, text_of
from steps.validate import validate
from tests.core.test_schema import ROUTING, SPLIT, WRONG
from tests.core.test_several import ENCODERS, SEVERAL

#: Six errors of the fleet and its benchmarks, of several themes.
FLEET = (
    ("--data-parallel-rpc-port 13389\n", "--data-parallel-rpc-port 13390\n"),
    ("--data-parallel-start-rank 2", "--data-parallel-start-rank 1"),
    ("--max-num-seqs 32\n", "--max-num-sequences 32\n"),
    ("  perf:\n", "  perf_TPOT50:\n"),
    ("threshold: 5", "threshold: 96"),
)
FORM = {
    "unknown key": ("model:", "modelle: x\nmodel:"),
    "unknown key of a node": ("  - server_cmd", "  - colour: red\n    server_cmd"),
    "one node too few": ("num_nodes: 2", "num_nodes: 3"),
    "one node too many": ("num_nodes: 2", "num_nodes: 1"),
    "no number": ("num_nodes: 2", "num_nodes: two"),
    "no number of nodes": ("num_nodes: 2\n", ""),
    "no devices": ("npu_per_node: 16", "npu_per_node: four"),
    "devices misspelled": ("npu_per_node: 16", "npu_per_nod: 16"),
    "timeouts": ("model:", "timeouts: {lode: 5}\nmodel:"),
    "proxy": ("model:", "proxy: nginx\nmodel:"),
    "hosts": ("model:", "cluster_hosts: [a]\nmodel:"),
    "a list as variable": ("OMP_NUM_THREADS: 10", "OMP_NUM_THREADS: [10]"),
    "content": ("model:", "test_content: [poem]\nmodel:"),
    "no name of a variable": ("OMP_NUM_THREADS: 10", "'A=B': 10"),
}


def rules(text: str, folder: Path) -> set[tuple[str, str]]:
    path = folder / "case.yaml"
    path.write_text(text, encoding="utf-8")
    return {(problem.rule, problem.message) for problem in validate([path])}


@pytest.mark.parametrize("name", FORM)
def test_a_problem_of_form_hides_nothing_of_the_fleet(name: str, tmp_path: Path) -> None:
    fleet = rules(text_of(Example("parallel", FLEET)), tmp_path)
    assert len(fleet) >= 5
    both = rules(text_of(Example("parallel", (*FLEET, FORM[name]))), tmp_path)
    assert fleet <= both
    assert {rule for rule, _ in both - fleet} <= {f"MN0{n:02}" for n in range(20)}
    assert both - fleet


def test_an_unknown_key_in_a_benchmark_stops_the_rules_for_that_one_only(tmp_path: Path) -> None:
    wrong = ("baseline: 1800", "basline: 1800")
    both = rules(text_of(Example("parallel", (*FLEET, wrong))), tmp_path)
    fleet = rules(text_of(Example("parallel", FLEET)), tmp_path)
    assert {rule for rule, _ in fleet} - {rule for rule, _ in both} == {"MN704"}
    assert {rule for rule, _ in both} - {rule for rule, _ in fleet} == {"MN005"}


def test_what_shows_only_behind_a_problem_of_form_is_told_and_left_out_too(tmp_path: Path) -> None:
    pool = "kv_pool: {type: mooncake, config: {a: .inf}}\nmodelle: x\nmodel:"
    both = rules(text_of(Example("routing", (("model:", pool),))), tmp_path)
    assert {message.split(":")[0] for _, message in both} == {"kv_pool.config.a", "modelle"}


def test_a_run_is_refused_with_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text_of(Example("parallel", (*FLEET, FORM["unknown key"]))), encoding="utf-8")
    assert run.main([str(path), "--rehearse", "--run-dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert [code for code in ("MN005", "MN101", "MN201", "MN203") if code not in told] == []


@pytest.mark.parametrize("name", sorted(WRONG))
def test_no_rule_tells_what_only_follows_from_a_problem_of_form(name: str, tmp_path: Path) -> None:
    text = WRONG[name][0]
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CaseError) as caught:
        load_case(path)
    form = {(problem.rule, problem.message) for problem in caught.value.problems}
    clean = rules(SPLIT, tmp_path) | rules(ROUTING, tmp_path)
    told = {(problem.rule, problem.message) for problem in validate([path])}
    assert form <= told
    assert told - form <= clean


#: A file of several cases, of which the first has an unknown flag and odd benchmarks.
ODD = SEVERAL.replace('"--max-model-len"', '"--max-model-length"').replace("perf:\n", "TPOT50:\n")
#: A problem of form in the first case, and what cannot be asked without what is wrong there.
ENTRY = {
    "a list as variable": ('LEVEL: "3"', "LEVEL: [3]", {"MN601"}),
    "no variables": ("    envs:\n      <<: *envs\n", "", {"MN601"}),
    "no name of a variable": ('LEVEL: "3"', '"LE=VEL": 3', {"MN601"}),
    "a number as name": ('LEVEL: "3"', '5: "3"', {"MN601"}),
    "no port": ('"DEFAULT_PORT"', "eighty", set()),
    "no name": ('name: "first"', "engine: vllm", set()),
    "no model": ("    model: demo/tiny\n", "", set()),
    "a text as command": ("server_cmd: *server_cmd\n    ", "server_cmd: a b\n    ", {"MN601"}),
    "no command": ("    server_cmd: *server_cmd\n    ", "    ", {"MN601"}),
    "a mapping as word": ('- "4096"', "- {a: b}", {"MN101", "MN601"}),
    "words of encoders": ("    model:", "    epd_server_cmds: [[--port, 1]]\n    model:", set()),
    "no encoders": ("    model:", "    service_mode: epd\n    model:", {"MN101", "MN601"}),
    "devices": ("    model:", "    npu_per_node: four\n    model:", set()),
    "no case": ("test_cases:\n", "test_cases:\n  - 5\n", set()),
}


@pytest.mark.parametrize("name", ENTRY)
def test_a_problem_of_form_in_one_of_several_hides_little(name: str, tmp_path: Path) -> None:
    old, new, unasked = ENTRY[name]
    odd = rules(ODD, tmp_path)
    assert {rule for rule, _ in odd} >= {"MN101", "MN601", "MN702", "MN704"}
    both = rules(ODD.replace(old, new, 1), tmp_path)
    assert {rule for rule, _ in odd - both} <= unasked
    assert {rule for rule, _ in both - odd} <= {f"MN0{n:02}" for n in range(30)}
    assert both - odd


def test_what_the_file_and_one_of_its_cases_have_wrong_is_told_once(tmp_path: Path) -> None:
    both = rules(ODD.replace('LEVEL: "3"', '5: "3"'), tmp_path)
    assert [message for rule, message in both if rule == "MN005"] == [
        "envs.5: found the key 5, expected text"
    ]


def test_encoders_with_a_problem_of_form_hide_no_benchmark(tmp_path: Path) -> None:
    perf = textwrap.indent(ODD[ODD.index("  TPOT50:") : ODD.index("test_cases:")], "    ")
    text = ENCODERS.replace("_args:\n      [", "_args:\n      [[a], ") + "    benchmarks:\n" + perf
    both = rules(text, tmp_path)
    assert {message.split(":")[0] for _, message in both} >= {"epd_proxy_args.0"}
    assert {rule for rule, _ in both} >= {"MN704"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("line", range(60))
def test_a_line_lost_makes_no_rule_fall_over(base: str, line: int, tmp_path: Path) -> None:
    lines = BASES[base].splitlines()
    rules("\n".join(lines[:line] + lines[line + 1 :]), tmp_path)


@pytest.mark.parametrize("text", [SEVERAL, ENCODERS], ids=["several", "encoders"])
def test_a_line_lost_in_one_of_several_makes_no_rule_fall_over(text: str, tmp_path: Path) -> None:
    lines = text.splitlines()
    for at in range(len(lines)):
        rules("\n".join(lines[:at] + lines[at + 1 :]), tmp_path)
