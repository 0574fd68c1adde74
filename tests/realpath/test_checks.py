"""Checks of content on the tests' own engine: what a rehearsal does not judge, is judged here."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.realpath.fleet import CHAT, SUMS, case, cause, local, split

DRAFTS = """ --speculative-config '{"method": "ngram", "num_speculative_tokens": 2}'"""
ALL = {
    "test_content": [
        "chat_completion", "completion", "image", "messages", "check_rank0_process_count",
        "spec_decode_acceptance", "benchmark_comparisons",
    ],
    "chat_prompts": ["one two", {"seed": "x y z", "target_tokens": 30}],
    "api_keyword_args": [{"max_tokens": 5}, {"stream": False}],
    "expected_response": {
        "per_prompt": [{"prompt_tokens": 3}, {"completion_tokens": 9, "max_model_len": 40}]
    },
    "mm_request": {"images": ["dot.jpg"], "text_prompt": "what", "api_args": {"max_tokens": 3}},
    "acceptance_rate": {"baseline": 0.8, "tolerance": 0.05},
    "benchmark_comparisons_args": [{"target": "chat", "baseline": "slow", "ratio": 2}],
}  # fmt: skip


def asked(shape=case, nodes: int = 1, knobs: str = "", **more: Any) -> dict[str, Any]:
    """A fleet whose engines draft, and all checks."""
    words = dict.fromkeys(range(nodes), f"accepts=0.8 {knobs}")
    benchmarks = {"chat": CHAT, "slow": CHAT}
    data: dict[str, Any] = shape(nodes, words, benchmarks=benchmarks, **{**ALL, **more})
    for entry in data["deployment"]:
        entry["server_cmd"] += DRAFTS
    return data


def told(found) -> dict[str, dict[str, str]]:
    return {
        check["name"].removeprefix("content "): check
        for check in found.verdict["checks"]
        if check["name"].startswith("content ")
    }


def picture(tmp) -> None:
    (tmp / "dot.jpg").write_bytes(base64.b64decode("/9j/4AAQSkZJRgABAQAAAQABAAD/"))


def test_every_check_is_made_and_nothing_is_skipped(tmp_path):
    picture(tmp_path)
    # So slow that the first answers of two benchmarks are alike on a busy machine too.
    found = local(tmp_path, asked(knobs="ttft=0.1"))
    assert (found.code, found.verdict["verdict"]) == (0, "pass"), found.output
    statuses = {name: check["status"] for name, check in told(found).items()}
    assert set(statuses.values()) == {"pass"}, statuses
    assert len(statuses) == 10
    detail = told(found)["chat_completion 2"]["detail"]
    assert "prompt_tokens 28" in detail, "3 words a line, and one for the template"
    assert not (found.path / "stage").exists(), "nobody waits for benchmarks but stand-ins"
    for result in found.verdict["benchmarks"]:
        assert result["metrics"]["acceptance_rate_pos_0"] == pytest.approx(0.8)
        assert result["metrics"]["acceptance_rate_pos_1"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("check", "words", "more", "knobs"),
    [
        ("chat_completion 1", "prompt_tokens 3", {"expected_response": {"prompt_tokens": 9}}, ""),
        ("chat_completion 2", "completion_tokens 8", {}, "short"),
        ("chat_completion 1", "no text", {}, "mute"),
        ("completion 1", "no text for prompt 1", {}, "mute"),
        ("messages 1", "no text", {}, "mute"),
        ("chat_completion 2", "/tokenize does not count tokens: HTTP 404", {}, "blind"),
        ("spec_decode_acceptance", "does not tell vllm:spec_decode_num_drafts", {}, "blind"),
        ("spec_decode_acceptance", "0.57 to 0.63; found 0.8000 of",
         {"acceptance_rate": {"baseline": 0.6}}, ""),
        ("image", "it does not contain 'cat'", {"expected_response": {"content_contains": ["cat"]}},
         ""),
        ("image", "it has 15 characters", {"expected_response": {"max_length": 5}}, ""),
        ("image", "the picture nowhere.jpg cannot be read",
         {"mm_request": {"images": ["nowhere.jpg"]}}, ""),
        ("benchmark_comparisons chat < slow", "expected TTFT of chat < 0 x slow; found",
         {"benchmark_comparisons_args": [{"target": "chat", "baseline": "slow", "ratio": 0}]}, ""),
    ],
)  # fmt: skip
def test_a_check_fails(check, words, more, knobs, tmp_path):
    picture(tmp_path)
    data = asked(knobs=knobs, **more)
    if "benchmark_comparisons_args" not in more:
        data["benchmarks"] = {"chat": CHAT} if "acceptance" in check else {}
        data["test_content"] = [check.split()[0]]
        data.pop("benchmark_comparisons_args")
    found = local(tmp_path, data, "--bench", "smoke")
    assert found.code == (3 if "nowhere" in words else 1), found.output
    assert told(found)[check]["status"] == "fail"
    assert words in told(found)[check]["detail"]
    assert cause(found, "kind", "phase") == ("check", "checks")


def test_behind_a_proxy_the_engines_are_asked_themselves(tmp_path):
    found = local(tmp_path, asked(split, 4, test_content=["chat_completion", "messages",
                                                        "spec_decode_acceptance"]),
                  "--bench", "smoke")  # fmt: skip
    made = told(found)
    assert made["spec_decode_acceptance"]["status"] == "pass", found.output
    assert made["chat_completion 2"]["status"] == "pass", found.output


def test_a_benchmark_of_drafts_is_judged_at_its_own_load(tmp_path):
    rates = {**SUMS, "case_type": "spec_decode", "baseline": [0.8, 0.45], "threshold": 0.05}
    data = asked(test_content=[])
    data.pop("benchmark_comparisons_args")
    data["benchmarks"] = {"rates": rates}
    found = local(tmp_path, data)
    assert (found.code, found.verdict["verdict"]) == (1, "performance"), found.output
    [result] = found.verdict["benchmarks"]
    assert [gate["passed"] for gate in result["gates"]] == [True, False]
    assert not any(check["name"] == "score" for check in result["checks"]), "nobody looks at it"
