"""The form of a case: each kind of problem, all at once, with place, found and expected."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cerberus import SchemaError

from steps.core.case import check, fields
from steps.core.case.case import seconds
from steps.core.case.check import unread
from steps.core.errors import CaseError, Problem
from steps.core.plan import profile  # noqa: F401 - adds a form
from tests.core.cases import MOONCAKE, ROUTING, SPLIT, case_of


def problems(text: str) -> list[Problem]:
    with pytest.raises(CaseError) as caught:
        case_of(text)
    return list(caught.value.problems)


def changed(old: str, new: str, text: str = SPLIT) -> str:
    assert old in text
    return text.replace(old, new, 1)


#: name -> (text, rule, the line's text, words of the message and the hint)
WRONG: dict[str, tuple[str, str, str, str]] = {
    "list": ("- a\n", "MN003", "- a", "found a list"),
    "nothing": ("", "MN003", "", "found nothing"),
    "no dialect": ("model: m\n", "MN003", "model: m", "neither"),
    "misspelt dialect": ("deploymnet: []\n", "MN003", "deploymnet", "Did you mean 'deployment'"),
    "missing": (changed("model: demo/tiny\n", ""), "MN004", "test_name", "'model' is missing"),
    "unknown in ours": (
        SPLIT + "lint: {ignored: {}}\n", "MN005", "lint", "unknown key"),
    "gate of nobody": (
        changed("baseline: 100", "baseline: 1\n    goodput_threshold: 3"), "MN005",
        "goodput_threshold", "unknown key"),
    "unknown in a node": (
        changed("- name: decoder", "- server_cmds: a"), "MN005", "server_cmds", "unknown key"),
    "misspelt at the top": (
        changed("npu_per_node:", "npu_pernode: 1\nnpu_per_node:"), "MN005", "npu_pernode",
        "unknown key"),
    "benchmark outside": (
        SPLIT + "smoke: {case_type: accuracy}\n", "MN005", "smoke", "it belongs in 'benchmarks'"),
    "nobody's role": (
        changed("decoder: [1]", "decoder: [1], encoder: [1]", ROUTING), "MN005", "encoder",
        "unknown key"),
    "shell": (
        changed("vllm serve", "export A=1 && vllm serve"), "MN015", "export", "no 'export'"),
    "inside something": (
        SPLIT + "server_cmd: vllm serve m\n", "MN005", "server_cmd", "belongs in 'deployment'"),
    "no nodes": (
        changed("prefiller_host_index: [0]", "prefiller_host_index: []"), "MN007",
        "prefiller_host_index", "is empty"),
    "misspelt": (
        changed("num_prompts", "num_prompt"), "MN005", "num_prompt:", "Did you mean 'num_prompts'"),
    "indented": (
        changed("    case_type", "    num_nodes: 2\n    case_type"), "MN005", "    num_nodes",
        "belongs at the top"),
    "outdented": (
        SPLIT + "  baseline: 3\n", "MN00", "  baseline: 3", "belongs under the name"),
    "other dialect": (SPLIT + "kv_pool: {type: mooncake}\n", "MN005", "kv_pool", "routing dialect"),
    "text for a number": (
        changed("npu_per_node: 4", "npu_per_node: four"), "MN006", "npu_per_node",
        "found 'four', expected a whole number"),
    "true for a number": (
        changed("num_nodes: 2", "num_nodes: true"), "MN006", "num_nodes", "found True"),
    "list for text": (
        changed("model: demo/tiny", "model: [a]"), "MN006", "model", "found a list, expected text"),
    "nothing for text": (changed("model: demo/tiny", "model:"), "MN006", "model", "found nothing"),
    "key is a number": (SPLIT + "7: x\n", "MN005", "7: x", "found the key 7"),
    "negative": (
        changed("npu_per_node: 4", "npu_per_node: -4"), "MN007", "npu_per_node", "at least 0"),
    "zero nodes": (changed("num_nodes: 2", "num_nodes: 0"), "MN007", "num_nodes", "at least 1"),
    "negative size": (
        changed("batch_size: 8", "batch_size: -8"), "MN007", "batch_size", "at least 1"),
    "port": (
        changed("port_start: 7100", "port_start: 70000", ROUTING), "MN007", "port_start: 70000",
        "at most 65535"),
    "choice": (
        changed("performance", "performanse"), "MN007", "performanse",
        "did you mean 'performance'"),
    "name of a variable": (
        changed("SHARED: common", "SHA RED: common"), "MN007", "SHA RED", "expected form"),
    "nodes": (changed("num_nodes: 2", "num_nodes: 3"), "MN010", "deployment:", "2 entries"),
    "hosts": (SPLIT + "cluster_hosts: [10.0.0.1]\n", "MN010", "cluster_hosts", "1 entries"),
    "hosts twice": (
        SPLIT + "cluster_hosts:\n  - h\n  - h\n", "MN011", "  - h", "listed twice"),
    "index": (
        changed("decoder_host_index: [1]", "decoder_host_index: [2]"), "MN012", "decoder_host",
        "below 2"),
    "old index": (
        changed("name: decoder", "name: decoder\n    local_index: 0"), "MN012", "local_index",
        "expected 1"),
    "node twice": (
        changed("{node_index: 1, port", "{node_index: 0, port", ROUTING), "MN012", "node_index: 0",
        "two entries"),
    "quote": (
        changed("--port $SERVER_PORT", "--port '80"), "MN013", "--port '80", "never closed"),
    "no command": (
        changed("server_cmd: >\n      vllm serve demo/tiny --port $SERVER_PORT\n"
        "      --tensor-parallel-size 4", 'server_cmd: ""'), "MN014", "server_cmd", "is empty"),
    "no vllm": (
        changed("vllm serve", "python serve.py"), "MN015", "python", "expected 'vllm serve"),
    "ranks": (
        changed("dp_rank_start: 0", "dp_rank_start: 1", ROUTING), "MN016", "dp_rank_start: 1",
        "do not fit"),
    "two roles": (
        changed("decoder_host_index: [1]", "decoder_host_index: [0]"), "MN017", "decoder_host",
        "already in"),
    "pool's keys": (
        ROUTING + MOONCAKE + "  meta_service_port: 5\n", "MN018", "meta_service_port",
        "belongs to memcache"),
    "gate": (
        changed("baseline: 100", "gates: ['ttft < ']"), "MN019", "gates", "metric op value"),
    "gate of no baseline": (
        changed("baseline: 100", "gates: ['ttft_mean_ms <= 2 * baseline']"), "MN019", "gates",
        "there is none"),
    "no reason": (changed("baseline: 100", "gate: none"), "MN019", "gate: none", "needs a reason"),
    "no data set": (
        changed("    dataset_path: demo/data\n", ""), "MN004", "perf:", "dataset_path"),
    "phase": (SPLIT + "timeouts: {lode: 5}\n", "MN007", "timeouts", "did you mean 'load'"),
    "duration": (SPLIT + "timeouts: {load: soon}\n", "MN007", "timeouts", "soon"),
    "proxy": (SPLIT + "proxy: nginx\n", "MN007", "proxy", "found 'nginx'"),
    "proxy's key": (SPLIT + "proxy: {port: 1}\n", "MN005", "proxy", "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_each_kind_of_problem(name: str) -> None:
    text, rule, where, words = WRONG[name]
    found = [p for p in problems(text) if words in f"{p.message} {p.hint}"]
    assert found, [str(p) for p in problems(text)]
    first = found[0]
    assert first.rule.startswith(rule)
    lines = text.splitlines() or [""]
    assert where in lines[first.place.line - 1]
    assert first.place.file == "test.yaml"
    assert first.place.column <= len(lines[first.place.line - 1]) + 1


def test_all_at_once_and_in_order() -> None:
    text = SPLIT.replace("model:", "modle:").replace("npu_per_node: 4", "npu_per_node: x")
    text = text.replace("batch_size: 8", "batch_size: 0").replace("num_nodes: 2", "num_nodes: 5")
    found = problems(text)
    assert {p.rule for p in found} == {"MN004", "MN005", "MN006", "MN007", "MN010"}
    assert [p.place.line for p in found] == sorted(p.place.line for p in found)
    assert len(set(found)) == len(found)


def test_what_upstreams_own_cases_have_and_nobody_reads_is_no_mistake() -> None:
    text = changed("    baseline: 100", "    baseline: 100\n    do_sample: true")
    assert [".".join(map(str, path)) for path in unread(case_of(text).source)] == [
        "benchmarks.perf.do_sample"
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("test_name:", "_DEBUG_MARKER: 1\ntest_name:"),
        ("test_name:", "runner_configs: {a: 1}\ntest_name:"),
        ("test_name:", "versions: [1]\ntest_name:"),
        ("- name: decoder", "- layerwise: true"),
        ("enabled: true", "enabled: true\n  ranktable_gen_path: gen.sh\n  ranktable_path: x"),
        ("    baseline: 100", "    baseline: 100\n    colour: red"),
    ],
)
def test_a_key_that_upstream_ignores_refuses_no_case(old: str, new: str) -> None:
    case = case_of(changed(old, new))
    assert case.num_nodes == 2 and list(unread(case.source))


def test_quoted_numbers_are_numbers_where_upstream_reads_them_so() -> None:
    plain = case_of(ROUTING)
    text = re.sub(
        r"(num_nodes|npu_per_node|\w+_size|\w+_port|port_start): (\d+)", r'\1: "\2"', ROUTING
    )
    quoted = case_of(text)
    assert '"7100"' in text
    assert [node.ranks for node in quoted.nodes] == [node.ranks for node in plain.nodes]
    assert (quoted.num_nodes, quoted.npu_per_node) == (plain.num_nodes, plain.npu_per_node)
    for wrong in ('"7100x"', '"-1"', '""'):
        found = problems(text.replace('"7100"', wrong))
        assert [p.rule for p in found] == ["MN006"], found
    assert problems(changed("num_nodes: 2", 'num_nodes: "2"'))[0].rule == "MN006"


def test_a_split_that_is_off_may_list_nobody() -> None:
    text = changed("enabled: true", "enabled: false")
    text = changed("prefiller_host_index: [0]", "prefiller_host_index: []", text)
    assert case_of(text).split is None


def test_the_old_forms_headless_says_nothing_about_the_command() -> None:
    case = case_of(changed("- name: decoder", "- headless: true"))
    assert not case.nodes[1].headless


def test_a_key_that_only_holds_an_anchor_is_no_mistake() -> None:
    assert case_of("shared: &s\n  A: 1\n" + SPLIT).num_nodes == 2
    assert case_of("x-notes: [a]\n" + SPLIT).num_nodes == 2


def test_numbers_written_as_text_count() -> None:
    entry = case_of(changed("num_prompts: 64", "num_prompts: '64'")).benchmarks[0]
    assert entry.num_prompts == 64


@pytest.mark.parametrize(
    ("text", "found"), [(5, 5.0), ("5", 5.0), ("5s", 5.0), ("2.5m", 150.0), (" 1 h ", 3600.0)]
)
def test_durations(text: Any, found: float) -> None:
    assert seconds(text) == found


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1d", "s", "1e3", "inf", "nan", "9" * 400, "31000h"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="found"):
        seconds(text)


def test_missing_keys_are_told_in_one_order() -> None:
    missing = [problem.field for problem in problems("deployment: []\n") if problem.rule == "MN004"]
    assert len(missing) > 3
    assert missing == sorted(missing)


@pytest.mark.parametrize("form", sorted(fields.FORMS))
def test_every_form_is_one_that_cerberus_knows(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check._CaseValidator, "_valid_schemas", set())
    check._CaseValidator(fields.FORMS[form])
    with pytest.raises(SchemaError):
        check._CaseValidator({**fields.FORMS[form], "a": {"no_such_rule": 1}})
