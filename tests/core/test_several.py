"""A file of several cases: each is a case like any other, with places and a plan of its own."""

from __future__ import annotations

import copy
import random
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.core.case.build import cases_in, load_case
from steps.core.case.case import Case
from steps.core.case.source import load_yaml
from steps.core.errors import CaseError, UsageError
from steps.core.plan.plan import Plan
from steps.core.plan.resolver import resolve
from steps.fix import fixed
from steps.validate import neutral_cluster, validate
from tests.core.test_mutations import paths_of

SEVERAL = textwrap.dedent(
    """\
    _envs: &envs
      SERVER_PORT: "DEFAULT_PORT"
      LEVEL: "3"
    _server_cmd: &server_cmd
      - "--port"
      - "$SERVER_PORT"
      - "--tensor-parallel-size"
      - "4"
    _perf: &perf
      perf:
        case_type: performance
        dataset_path: demo/data
        request_conf: vllm_api_stream_chat
        dataset_conf: gsm8k/gsm8k_gen_0_shot_cot_str_perf
        num_prompts: 8
        max_out_len: 16
        batch_size: 4
        baseline: 1
    test_cases:
      - name: "first"
        model: demo/tiny
        envs:
          <<: *envs
        server_cmd: *server_cmd
        server_cmd_extra:
          - "--data-parallel-size"
          - "2"
          - "--max-model-len"
          - "4096"
        benchmarks:
          <<: *perf
      - name: "second"
        model: demo/other
        envs:
          SERVER_PORT: "9000"
        server_cmd: *server_cmd
        test_content:
          - chat_completion
    """
)


#: One encoder, one server behind it, and the proxy in front of both.
ENCODERS = textwrap.dedent(
    """\
    test_cases:
      - name: pictures
        model: demo/tiny
        service_mode: epd
        envs: {ENCODE_PORT: DEFAULT_PORT, PD_PORT: DEFAULT_PORT, PROXY_PORT: "7001"}
        epd_server_cmds:
          - [--port, $ENCODE_PORT, --model, demo/tiny, --ec-transfer-config,
             '{"ec_connector": "ECExampleConnector", "ec_role": "ec_producer"}']
          - [--port, $PD_PORT, --model, demo/tiny, --ec-transfer-config,
             '{"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}']
        epd_proxy_args:
          [--host, 127.0.0.1, --port, $PROXY_PORT,
           --encode-servers-urls, "http://localhost:$ENCODE_PORT",
           --decode-servers-urls, "http://localhost:$PD_PORT", --prefill-servers-urls, disable]
        test_content:
    """
)


def write(folder: Path, text: str = SEVERAL) -> Path:
    path = folder / "several.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def plan_of(case: Case) -> Plan:
    return resolve(case, neutral_cluster(1))


def test_each_case_is_one_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert list(cases_in(load_yaml(path))) == ["first", "second"]
    first, second = load_case(path, only="first"), load_case(path, only="second")
    assert (first.name, first.only, first.num_nodes) == ("first", "first", 1)
    assert (first.npu_per_node, second.npu_per_node) == (8, 4)
    assert [entry.name for entry in first.benchmarks] == ["perf"]
    assert (first.content.kinds, second.content.kinds) == (("completion",), ("chat_completion",))
    [server] = plan_of(first).nodes[0].processes
    port = server.env["SERVER_PORT"]
    expected = f"vllm serve demo/tiny --port {port} --tensor-parallel-size 4 --data-parallel-size 2"
    assert " ".join(server.argv) == f"{expected} --max-model-len 4096"
    assert server.api.endswith(f":{port}")


def test_places_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    second = load_case(path, only="second")
    lines = SEVERAL.splitlines()
    assert "demo/other" in lines[second.place("model").line - 1]
    tensor = second.nodes[0].command[5]
    assert tensor.text == "--tensor-parallel-size"
    assert "--tensor-parallel-size" in lines[tensor.place.line - 1]


def test_ports_are_free_ones_of_each_case(tmp_path: Path) -> None:
    path = write(tmp_path)
    env = plan_of(load_case(path, only="first")).nodes[0].processes[0].env
    words = ("SERVER_PORT", "ENCODE_PORT", "PD_PORT", "PROXY_PORT")
    assert len({env[word] for word in words}) == 4
    assert all(env[word].isdecimal() for word in words)
    assert (
        plan_of(load_case(path, only="second")).nodes[0].processes[0].env["SERVER_PORT"] == "9000"
    )


def test_encoders_sit_behind_a_proxy(tmp_path: Path) -> None:
    path = write(tmp_path, ENCODERS)
    assert not [p for p in validate([path]) if p.severity.value == "error"]
    case = load_case(path)
    plan = plan_of(case)
    encoder, decoder, proxy = plan.nodes[0].processes
    assert (case.npu_per_node, case.content.kinds) == (2, ())
    assert [p.env["ASCEND_RT_VISIBLE_DEVICES"] for p in (encoder, decoder)] == ["0", "1"]
    assert encoder.env["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1"
    assert encoder.argv[:4] == ("vllm", "serve", "--port", encoder.env["ENCODE_PORT"])
    assert proxy.argv[1] == "examples/disaggregated_encoder/disagg_epd_proxy.py"
    assert f"http://localhost:{decoder.env['PD_PORT']}" in proxy.argv
    assert proxy.probe is not None
    assert proxy.probe.url == "http://127.0.0.1:7001/health"
    assert (plan.endpoint.url, plan.endpoint.model) == ("http://127.0.0.1:7001", "demo/tiny")
    last = len(ENCODERS.splitlines())
    assert all(word.place.line < last for words in case.nodes[0].commands for word in words)


def test_nothing_of_a_network_is_injected(tmp_path: Path) -> None:
    env = plan_of(load_case(write(tmp_path), only="first")).nodes[0].processes[0].env
    assert not [name for name in env if name.startswith("HCCL_") or name.endswith("_IP")]
    assert (env["VLLM_USE_MODELSCOPE"], env["LEVEL"]) == ("True", "3")


def test_a_variable_that_nobody_defines_stays_as_upstream_leaves_it(tmp_path: Path) -> None:
    path = write(tmp_path, SEVERAL.replace('"4096"', '"$NOWHERE"'))
    assert "$NOWHERE" in plan_of(load_case(path, only="first")).nodes[0].processes[0].argv
    assert [p.severity.value for p in validate([path]) if p.rule == "MN020"] == ["warning"]


def test_somebody_must_say_which(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(UsageError, match="holds 2 cases: first, second"):
        load_case(path)
    with pytest.raises(UsageError, match="no case 'secnd'") as caught:
        load_case(path, only="secnd")
    assert "--only 'second'" in caught.value.hint


def test_the_same_name_twice_is_two_cases(tmp_path: Path) -> None:
    path = write(tmp_path, SEVERAL.replace('"second"', '"first"'))
    assert list(cases_in(load_yaml(path))) == ["first", "first-2"]
    assert load_case(path, only="first-2").name == "first-2"


WRONG = {
    "no list": ("test_cases: 5\n", "MN006", "a list"),
    "none": ("test_cases: []\n", "MN007", "is empty"),
    "null": ("test_cases:\n", "MN006", "found nothing"),
    "text for a case": ("test_cases: [first]\n", "MN006", "a mapping"),
    "no name": (SEVERAL.replace('name: "first"', "engine: vllm"), "MN004", "'name'"),
    "no command": (SEVERAL.replace("server_cmd: *server_cmd", "", 1), "MN004", "server_cmd"),
    "text for words": (
        SEVERAL.replace("server_cmd: *server_cmd", "server_cmd: a b", 1), "MN006", "a list"),
    "words among variables": (
        SEVERAL.replace("<<: *envs", "<<: *envs\n      extra: [a]", 1), "MN006", "envs.extra"),
    "words of the case among variables": (
        SEVERAL.replace("<<: *envs", "<<: *envs\n      server_cmd_extra: [a]", 1),
        "MN006", "belongs to the case"),
    "no port": (SEVERAL.replace('"9000"', '"many"'), "MN007", "DEFAULT_PORT"),
    "mode": (SEVERAL.replace('"second"', '"second"\n    service_mode: pd'), "MN007", "epd"),
    "unknown key": (SEVERAL.replace("test_content", "test_contents"), "MN005", "test_content"),
    "no proxy": (ENCODERS.replace("epd_proxy_args", "x-args"), "MN004", "epd_proxy_args"),
    "no port of a server": (ENCODERS.replace("[--port, $PD_PORT, ", "["), "MN004", "--port"),
    "no port of the proxy": (ENCODERS.replace("--port, $PROXY_PORT,", ""), "MN004", "--port"),
    "two kinds of server": (
        ENCODERS.replace("envs:", "server_cmd: [a]\n    envs:"), "MN018", "server_cmd"),
    "completion behind encoders": (
        ENCODERS.replace("test_content:", "test_content: [completion]"), "MN023", "completion"),
    "unknown at the top": ("tests: 5\n" + SEVERAL, "MN005", "tests"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_place(name: str, tmp_path: Path) -> None:
    text, rule, part = WRONG[name]
    found = validate([write(tmp_path, text)])
    told = [f"{problem.message} {problem.hint}" for problem in found if problem.rule == rule]
    assert any(part in line for line in told), found
    assert all(problem.place.line for problem in found)


def test_a_wrong_case_hides_none_of_the_others(tmp_path: Path) -> None:
    text = SEVERAL.replace("model: demo/tiny", "model: 5").replace('"9000"', '"many"')
    rules = [problem.rule for problem in validate([write(tmp_path, text)])]
    assert rules.count("MN006") == rules.count("MN007") == 1


def test_a_problem_of_form_hides_no_finding_of_its_case(tmp_path: Path) -> None:
    text = SEVERAL.replace("model: demo/tiny", "model: 5").replace("--max-model-len", "--nonsense")
    rules = [problem.rule for problem in validate([write(tmp_path, text)])]
    assert {"MN006", "MN101"} <= {*rules}
    assert "MN004" not in rules


def test_what_cases_share_is_told_once(tmp_path: Path) -> None:
    text = SEVERAL.replace('"--tensor-parallel-size"', '"--tensor-paralel-size"')
    found = [problem for problem in validate([write(tmp_path, text)]) if problem.rule == "MN101"]
    assert len(found) == 1
    with pytest.raises(CaseError):
        load_case(write(tmp_path, "test_cases: [{name: a}]\n"), only="a")


ODD: tuple[Any, ...] = (
    None, True, -1, 65536, 10**70, float("nan"), "", "$", "${", "\u00b2", [], {}, [[]], [None],
    [{}], {"": None}, {1: 2}, ["--port", 1, True], ["--port"], ["--tensor-parallel-size", "\u00b2"],
)  # fmt: skip


@pytest.mark.parametrize("text", [SEVERAL, ENCODERS])
def test_no_value_makes_anything_fall_over(text: str, tmp_path: Path) -> None:
    rng, data = random.Random(18), yaml.safe_load(text)
    for path in paths_of(data):
        changed = copy.deepcopy(data)
        inner = changed
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = rng.choice(ODD)
        for problem in validate([write(tmp_path, yaml.safe_dump(changed, allow_unicode=True))]):
            assert problem.message
            assert problem.place.line


def test_a_matrix_knows_that_they_have_one_node(tmp_path: Path) -> None:
    path, matrix = write(tmp_path), tmp_path / "nightly.yaml"
    matrix.write_text(f"a3:\n  - {{name: several, case: {path}, size: 2}}\n", encoding="utf-8")
    for cases in ([], [path]):
        assert "MN802" in {problem.rule for problem in validate(cases, matrix)}


def test_a_fix_mends_every_case() -> None:
    text = SEVERAL.replace('"--tensor-parallel-size"', '"--tensor-parallel"')
    new, done = fixed(text.replace('"--max-model-len"', '"--max-model"'))
    assert (new, done) == (SEVERAL, ["MN102", "MN102"])


def test_an_ignore_counts_where_one_of_the_cases_needs_it(tmp_path: Path) -> None:
    line = '      - "--max-model-len"'
    text = SEVERAL.replace(line, '      - "--max-model-length"  # multinode: ignore[MN101] so\n')
    found = validate([write(tmp_path, text)])
    assert "MN101" not in {problem.rule for problem in found}
    assert "MN199" not in {problem.rule for problem in found}
