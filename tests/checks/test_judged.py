"""What is judged of answers and counters, and prompts of so many tokens: values alone."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from steps.bench_drivers import acceptance
from steps.bench_drivers.acceptance import Drafts
from steps.checks import KINDS, asking, drafts, pictures, texts, times
from steps.core.case.asked import BEHIND, READS
from steps.core.case.content import Acceptance, Comparison, Expected, Prompt
from steps.core.node.http import Reply
from steps.core.plan.plan import Access
from steps.core.record.records import BenchResult, Check
from steps.core.vllm import metrics


def test_every_check_that_a_case_may_name_is_there():
    assert set(KINDS) == set(READS)
    assert set(KINDS) > BEHIND


def answer(content: Any = "four", prompt: Any = 7, output: Any = 2, **message: Any) -> Reply:
    usage = {"prompt_tokens": prompt, "completion_tokens": output}
    choice = {"message": {"role": "assistant", "content": content, **message}}
    return Reply(200, json.dumps({"choices": [choice], "usage": usage}), "")


def chat(reply: Reply, expected: Expected | None = None, most: int = 0, **more: Any) -> Check:
    text = asking.Text("2 + 2?", more.pop("tokens", None))
    return texts.judge("chat", text, expected or Expected(), reply, most, **more)


@pytest.mark.parametrize(
    ("reply", "expected", "most", "found"),
    [
        (answer(), Expected(), 0, ""),
        (answer(), Expected(prompt_tokens=7, completion_tokens=2), 9, ""),
        (answer(None, reasoning="so: four"), Expected(), 0, ""),
        (answer(" "), Expected(), 0, "no text"),
        (answer(None), Expected(), 0, "no text"),
        (Reply(500, "dead", ""), Expected(), 0, "HTTP 500: dead"),
        (Reply(0, "", "connection refused"), Expected(), 0, "connection refused"),
        (Reply(200, "<html>", ""), Expected(), 0, "no text: <html>"),
        (Reply(200, "[]", ""), Expected(), 0, "no text: []"),
        (Reply(200, '{"choices": []}', ""), Expected(), 0, "no text"),
        (answer(prompt=8), Expected(prompt_tokens=7), 0, "prompt_tokens 8"),
        (answer(output=3), Expected(completion_tokens=2), 0, "completion_tokens 3"),
        (answer(output=None), Expected(completion_tokens=2), 0, "completion_tokens None"),
        (answer(), Expected(prompt_tokens=7), 8, "9 tokens, more than max_model_len 8"),
        (answer(), Expected(), 8, ""),
    ],
)
def test_a_chat(reply, expected, most, found):
    check = chat(reply, expected, most)
    assert check.status == ("fail" if found else "pass"), check
    assert found in check.detail


def test_what_was_counted_is_expected_unless_the_case_says_otherwise():
    assert chat(answer(), tokens=7).status == "pass"
    assert chat(answer(), tokens=8).status == "fail"
    assert chat(answer(), Expected(prompt_tokens=7), tokens=8).status == "pass"
    assert chat(answer(), Expected(prompt_tokens=9), skipped="rehearsed").status == "pass"


@pytest.mark.parametrize(
    ("reply", "expected", "found"),
    [
        (answer("a cat"), Expected(content_contains=("cat",), min_length=5, max_length=5), ""),
        (answer("a cat"), Expected(content_contains=("cat", "dog")), "does not contain 'dog'"),
        (answer("a cat"), Expected(min_length=6), "5 characters"),
        (answer("a cat"), Expected(max_length=4), "5 characters"),
        (answer(""), Expected(), "no text"),
        (answer(""), Expected(assert_not_empty=False), ""),
        (Reply(400, "no", ""), Expected(), "HTTP 400: no"),
        (Reply(400, "no", ""), Expected(status_code=400), ""),
        (answer("a cat"), Expected(status_code=400), "HTTP 200"),
    ],
)
def test_a_picture(reply, expected, found):
    check = pictures.judge("what?", expected, reply, rehearsed=False)
    assert check.status == ("fail" if found else "pass"), check
    assert found in check.detail


def test_what_a_stand_in_says_of_a_picture_is_not_judged():
    expected = Expected(content_contains=("dog",), max_length=1)
    assert pictures.judge("what?", expected, answer("a cat"), rehearsed=True).status == "pass"
    assert pictures.judge("what?", expected, answer(""), rehearsed=True).status == "fail"


@pytest.mark.parametrize(
    ("raw", "tools", "wrong"),
    [
        ({"type": "message", "role": "assistant", "content": [{"type": "text", "text": "a"}]},
         False, ""),
        ({"type": "message", "role": "assistant", "content": [{"type": "tool_use"}]}, True, ""),
        ({"type": "message", "role": "assistant", "content": [{"type": "tool_use"}]}, False,
         "no text"),
        ({"type": "error", "role": "assistant", "content": []}, False, "type and role"),
        ({"type": "message"}, False, "no message"),
        ([], False, "no message"),
    ],
)  # fmt: skip
def test_a_message(raw, tools, wrong):
    found = texts._message(json.dumps(raw), {"tools": []} if tools else {})
    assert found.startswith(wrong)
    assert bool(found) == bool(wrong)


def test_a_proxy_without_a_path_is_no_failure():
    plan = SimpleNamespace(proxy=object())
    run: Any = SimpleNamespace(plan=plan)
    assert "the proxy has no /v1/messages" in asking.absent(run, Reply(404, "", ""), "/v1/messages")
    assert asking.absent(run, Reply(500, "", ""), "/v1/messages") == ""
    plan.proxy = None
    assert asking.absent(run, Reply(404, "", ""), "/v1/messages") == ""


@pytest.mark.parametrize(
    ("tokens", "template", "seed", "sent", "counted"),
    [
        (10, 2, "x y", "x y\nx y\nx y\nx y", 10),
        (11, 2, "x yy", "x yy\nx yy\nx yy\nx yyaaaaa", 11),
        (10, 0, "x y", "x y\nx y\nx y\nx y\nx y", None),
        (3, 2, "a long seed of words", "a long seed of words", 7),
    ],
)
def test_a_prompt_of_so_many_tokens(tokens, template, seed, sent, counted, monkeypatch):
    """Tokens here: each word, and each five letters of one."""

    def post(run: Any, to: Access, body: Any) -> Reply:
        text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        count = sum((len(word) + 4) // 5 for word in text.split())
        return Reply(200, json.dumps({"count": count + template * ("messages" in body)}), "")

    monkeypatch.setattr(asking, "post", post)
    monkeypatch.setattr(asking, "_tokenizer", lambda plan: Access("http://a"))
    run: Any = SimpleNamespace(plan=SimpleNamespace(endpoint=SimpleNamespace(model="m")))
    found = asking.build(run, Prompt(seed, tokens))
    assert found.tokens == counted
    assert found.text.rstrip("a") == sent.rstrip("a")


def test_a_tokenizer_that_never_counts_more_is_no_endless_search(monkeypatch):
    monkeypatch.setattr(asking, "post", lambda *_: Reply(200, '{"count": 1}', ""))
    monkeypatch.setattr(asking, "_tokenizer", lambda plan: Access("http://a"))
    run: Any = SimpleNamespace(plan=SimpleNamespace(endpoint=SimpleNamespace(model="m")))
    assert len(asking.build(run, Prompt("x", 100)).text) < 100 * (2 + asking.LETTERS)


# Drafts


def test_counters_are_read_under_both_names():
    text = (
        "# TYPE vllm:spec_decode_num_drafts counter\n"
        'vllm:spec_decode_num_drafts_total{engine="0"} 10.0\n'
        'vllm:spec_decode_num_drafts_total{engine="1"} 6.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 8.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="0"} 4.0\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0\n'
        'vllm:spec_decode_num_drafts_created{engine="0"} 1.7e9\n'
    )
    assert metrics.drafted(text) == (16.0, {0: 12.0, 1: 2.0})
    assert metrics.drafted(text.replace("_total", "")) == (16.0, {0: 12.0, 1: 2.0})
    assert metrics.drafted("vllm:other 1\n") is None


def test_rates_are_of_what_came_between():
    before, after = Drafts(2, 10, {0: 9, 1: 1}), Drafts(2, 30, {0: 19, 1: 6})
    found = acceptance.between(before, after)
    assert found == Drafts(2, 20, {0: 10, 1: 5})
    assert found.rates == {
        "drafts": 20, "acceptance_rate_pos_0": 0.5, "acceptance_rate_pos_1": 0.25,
    }  # fmt: skip
    assert Drafts(1, 0).rate(0) == 0
    assert acceptance.between(before, "no metrics") == "no metrics"
    assert "started anew" in str(acceptance.between(after, before))


def measured(rate: float | None, count: float = 100, **more: Any) -> BenchResult:
    told = {} if rate is None else {"drafts": count, "acceptance_rate_pos_0": rate}
    return BenchResult(
        "b", "smoke", "performance", more.pop("status", "pass"), metrics=told, **more
    )


@pytest.mark.parametrize(
    ("results", "status", "found"),
    [
        ([measured(0.7)], "pass", "0.7000 of 100 drafts"),
        ([measured(0.665)], "pass", "0.665"),
        ([measured(0.735)], "pass", "0.735"),
        ([measured(0.66)], "fail", "expected 0.665 to 0.735"),
        ([measured(0.74)], "fail", "0.74"),
        ([measured(0.9, 100), measured(0.5, 100)], "pass", "0.7000 of 200"),
        ([measured(0.9, 10), measured(0.5, 990)], "fail", "0.5040 of 1000"),
        ([measured(0.0, 0)], "fail", "0.0000 of 0 drafts"),
        ([], "fail", "nothing was measured"),
        ([measured(0.7), measured(None)], "fail", "nothing was measured"),
        ([measured(None, checks=(Check("acceptance of drafts", "skipped", "no /metrics"),))],
         "fail", "no /metrics"),
        ([measured(None, status="skipped", reason="switched off")], "skipped", "switched off"),
    ],
)  # fmt: skip
def test_acceptance(results, status, found):
    check = drafts.judge(Acceptance(0.7, 0.05), results)
    assert (check.status, found in check.detail) == (status, True), check


def test_acceptance_without_a_baseline_judges_nothing():
    assert drafts.judge(Acceptance(), [measured(0.7)]).status == "skipped"


@pytest.mark.parametrize(
    ("sign", "ratio", "status"),
    [("<", 0.5, "fail"), ("<=", 0.5, "pass"), (">", 0.5, "fail"), (">=", 0.5, "pass"),
     ("<", 0.6, "pass"), (">", 0.4, "pass")],
)  # fmt: skip
def test_comparisons_are_as_strict_as_written(sign, ratio, status):
    done = {
        name: BenchResult(name, "smoke", "performance", "pass", metrics={"ttft_mean_ms": value})
        for name, value in (("slow", 100.0), ("fast", 50.0))
    }
    entry = Comparison("TTFT", "fast", "slow", ratio, sign)
    assert times.compare(entry, done, False).status == status
    assert times.compare(entry, {"slow": done["slow"]}, False).status == "fail"
    skipped = BenchResult("fast", "none", "performance", "skipped", "switched off")
    assert times.compare(entry, {**done, "fast": skipped}, False).status == "skipped"
