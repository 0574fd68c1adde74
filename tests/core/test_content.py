"""The checks of content that a case asks for: what each key means, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from steps.core.case.content import SINGLE, Acceptance, Comparison, Content, Expected, Prompt, build
from steps.core.case.gates import Gate, upstream
from steps.core.errors import CaseError, Problem
from tests.core.cases import SPLIT, case_of, plan_of

ALL = """
test_content: [chat_completion, completion, image, messages, spec_decode_acceptance,
  check_rank0_process_count, benchmark_comparisons]
chat_prompts: [Hello!, {seed: "x ", target_tokens: 34}]
api_keyword_args:
- {max_tokens: 5}
- {temperature: 0.5, tools: [{name: a}]}
expected_response:
  per_prompt:
  - {prompt_tokens: 7}
  - {completion_tokens: 9, max_model_len: 4096}
mm_request: {images: [a.jpg], text_prompt: "What?", api_args: {max_tokens: 500}}
acceptance_rate: {baseline: 0.7, tolerance: 0.1}
benchmark_comparisons_args:
- {metric: TTFT, baseline: perf, target: again, ratio: 0.5, operator: "<"}
checks: {stop: true}
"""
DRAFTS = """ --speculative-config '{"method": "ngram", "num_speculative_tokens": 3}'"""
BASE = SPLIT.replace("--tensor-parallel-size 4\n", f"--tensor-parallel-size 4{DRAFTS}\n")
BASE += BASE[BASE.index("  perf:") :].replace("perf:", "again:")


def problems(text: str) -> list[Problem]:
    with pytest.raises(CaseError) as caught:
        case_of(text)
    return list(caught.value.problems)


def test_every_key_becomes_a_value() -> None:
    found = case_of(BASE + ALL).content
    assert found.kinds[:2] == ("chat_completion", "completion")
    assert len(found.kinds) == 7
    first, second = found.exchanges
    assert (first.prompt, second.prompt) == (Prompt("Hello!"), Prompt("x ", 34))
    assert first.args == {"max_tokens": 5}
    assert first.expected == Expected(prompt_tokens=7)
    assert second.expected == Expected(completion_tokens=9, max_model_len=4096)
    assert (found.image.images, found.image.question) == (("a.jpg",), "What?")
    assert found.image.args == {"max_tokens": 500}
    assert found.acceptance == Acceptance(0.7, 0.1)
    assert found.comparisons == (Comparison("TTFT", "again", "perf", 0.5, "<"),)
    assert found.stop


def test_what_holds_for_all_prompts() -> None:
    text = "chat_prompts: [a, b]\napi_keyword_args: {n: 1}\nexpected_response: {prompt_tokens: 3}\n"
    found = case_of(SPLIT + "test_content: [chat_completion]\n" + text).content
    assert {exchange.expected.prompt_tokens for exchange in found.exchanges} == {3}
    assert [exchange.args for exchange in found.exchanges] == [{"n": 1}, {"n": 1}]


def test_the_defaults_are_those_of_the_dialect() -> None:
    assert case_of(SPLIT).content == Content(exchanges=case_of(SPLIT).content.exchanges)
    [exchange] = case_of(SPLIT + "test_content: [chat_completion]\n").content.exchanges
    assert (exchange.prompt.text, exchange.args) == ("Hello!", {})

    def single(data: dict[str, Any]) -> Content:
        return build(data, SINGLE, {}, lambda *_: None)

    assert single({}).kinds == ("completion",)
    assert single({"test_content": None}).kinds == single({"test_content": []}).kinds == ()
    [exchange] = single({}).exchanges
    assert (exchange.prompt.text, exchange.args) == ("San Francisco is a", {"max_tokens": 10})
    assert single({"prompts": ["a"]}).exchanges[0].prompt.text == "a"


WRONG = {
    "null": ("test_content: null", "MN006", "expected a list"),
    "text": ("test_content: chat_completion", "MN006", "expected a list"),
    "unknown": ("test_content: [chat]", "MN007", "chat_completion"),
    "no prompts": ("chat_prompts: []", "MN007", "is empty"),
    "number for a prompt": ("chat_prompts: [5]", "MN006", "text or a mapping"),
    "no tokens": ("chat_prompts: [{seed: a}]", "MN004", "target_tokens"),
    "zero tokens": ("chat_prompts: [{seed: a, target_tokens: 0}]", "MN007", "at least 1"),
    "short arguments": (
        "chat_prompts: [a, b]\napi_keyword_args: [{}]", "MN023", "expected 2, one a prompt"),
    "odd arguments": ("api_keyword_args: [5]", "MN023", "found 5, expected a mapping"),
    "long arguments": ("api_keyword_args: [{}, {}]", "MN023", "has 2 entries, expected 1"),
    "short expectations": (
        "chat_prompts: [a, b]\nexpected_response: {per_prompt: [{}]}", "MN023", "expected 2"),
    "both": (
        "expected_response: {per_prompt: [{}], prompt_tokens: 1}", "MN023", "keys beside it"),
    "null expectation": ("expected_response: null", "MN006", "found nothing"),
    "no count": ("expected_response: {prompt_tokens: many}", "MN006", "a whole number"),
    "odd expectation": ("expected_response: {finish_reason: stop}", "MN005", "unknown key"),
    "no JSON": ("api_keyword_args: {a: .inf}", "MN006", "a finite number"),
    "a date": ("api_keyword_args: {a: 2026-01-01}", "MN006", "expected text"),
    "rate": ("acceptance_rate: {baseline: 70}", "MN007", "at most 1"),
    "rate of text": ("acceptance_rate: 0.7", "MN006", "a mapping"),
    "nothing compared": ("test_content: [benchmark_comparisons]", "MN023", "compares nothing"),
    "absent benchmark": (
        "benchmark_comparisons_args: [{target: perf, baseline: parf}]", "MN023", "'parf'"),
    "no target": ("benchmark_comparisons_args: [{baseline: perf}]", "MN004", "'target'"),
    "operator": (
        "benchmark_comparisons_args: [{target: perf, baseline: perf, operator: '=='}]",
        "MN007", "expected one of"),
    "metric": (
        "benchmark_comparisons_args: [{target: perf, baseline: perf, metric: TPOT}]",
        "MN007", "TTFT"),
    "checks": ("checks: {stop: later}", "MN006", "true or false"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG))
def test_bad_input_is_told(name: str) -> None:
    text, rule, words = WRONG[name]
    found = [p for p in problems(f"{SPLIT}{text}\n") if p.rule == rule]
    assert found, [str(p) for p in problems(f"{SPLIT}{text}\n")]
    assert words in f"{found[0].message} {found[0].hint}"
    assert found[0].place.line > len(SPLIT.splitlines())


def test_accuracy_benchmarks_cannot_be_compared() -> None:
    text = BASE.replace("case_type: performance", "case_type: accuracy", 1)
    found = problems(text + "benchmark_comparisons_args: [{target: again, baseline: perf}]\n")
    assert "an accuracy benchmark" in found[0].message


def test_acceptance_needs_drafts() -> None:
    asked = "test_content: [spec_decode_acceptance]\nacceptance_rate: {baseline: 0.7}\n"
    assert plan_of(BASE + asked).content.acceptance.baseline == 0.7
    with pytest.raises(CaseError, match="--speculative-config"):
        plan_of(SPLIT + asked)
    text = SPLIT.replace("case_type: performance", "case_type: spec_decode")
    with pytest.raises(CaseError, match="--speculative-config"):
        plan_of(text.replace("baseline: 100", "baseline: [0.7]"))


# Benchmarks


def entry(**keys: Any) -> Any:
    lines = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    text = SPLIT.replace("    baseline: 100\n", lines)
    return case_of(text.replace("    case_type: performance\n", "", "case_type" in keys))


def test_a_benchmark_of_drafts() -> None:
    found = entry(case_type="spec_decode", baseline="[0.9, 0.8]").benchmarks[0]
    assert (found.rates, found.baseline) == ((0.9, 0.8), None)
    assert upstream("spec_decode", None, None, (0.9, 0.8)) == (
        Gate("acceptance_rate_pos_0", ">=", 0.855),
        Gate("acceptance_rate_pos_1", ">=", 0.76),
    )
    assert upstream("spec_decode", None, 0.5, (0.8,)) == (Gate("acceptance_rate_pos_0", ">=", 0.4),)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"case_type": "spec_decode", "baseline": 0.7}, "expected a list of rates"),
        ({"case_type": "spec_decode"}, "expected a list of rates"),
        ({"case_type": "spec_decode", "baseline": "[]"}, "expected a list of rates"),
        ({"case_type": "spec_decode", "baseline": [0.5] * 17}, "at most 16"),
        ({"case_type": "spec_decode", "baseline": "[70]"}, "at most 1"),
        ({"baseline": "[0.7]"}, "expected a number"),
        ({"tpot_threshold": 0}, "no answer can keep"),
        ({"tpot_threshold": "null"}, "expected a number"),
        ({"num_warmups": -1}, "at least 0"),
        ({"reasoning_effort": 3}, "expected text"),
    ],
)
def test_benchmarks_that_are_wrong(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(CaseError) as caught:
        entry(**keys)
    assert words in str(caught.value.problems)


def test_upstreams_keys_mean_what_they_mean_upstream() -> None:
    found = entry(
        input_throughput_threshold=900, tpot_threshold=50, top_p=0, top_k=0, seed=0, temperature=0,
        presence_penalty=1.5, reasoning_effort="low", num_warmups=3, thinking="'false'",
    ).benchmarks[0]  # fmt: skip
    assert found.gates == (
        Gate("tpot_mean_ms", "<=", 50.0),
        Gate("input_throughput", ">=", 900.0),
    )
    assert found.sampling == {"temperature": 0, "presence_penalty": 1.5}
    assert (found.reasoning_effort, found.num_warmups) == ("low", 3)
    assert found.thinking, "upstream takes any text for yes"
    assert not entry(thinking="false").benchmarks[0].thinking
    assert found.trust_remote_code
    assert upstream("accuracy", 88, None) == (
        Gate("accuracy", ">=", 87),
        Gate("accuracy", "<=", 89),
    )


# Values that nobody wrote


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


ODD = [None, True, -1, 0, 10**30, 1.5, float("nan"), "", "x", [], [None], {}, {"a": {"b": [1]}}]


@pytest.mark.parametrize("path", list(places(yaml.safe_load(ALL))), ids=str)
def test_no_value_is_worse_than_an_error(path: tuple[Any, ...]) -> None:
    for odd in ODD:
        data = yaml.safe_load(BASE + ALL)
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = odd
        try:
            plan_of(yaml.safe_dump(data, sort_keys=False))
        except CaseError as error:
            assert all(problem.place.line > 0 for problem in error.problems)
