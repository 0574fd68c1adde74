"""Checks of content on the real engine, which drafts from the prompt itself (ngram)."""

from __future__ import annotations

from tests.real.cases import case, performance
from tests.real.fleet import running

ASKED = """\
test_content: [chat_completion, completion, messages, spec_decode_acceptance]
chat_prompts: [The capital of France is, {seed: "two and three ", target_tokens: 96}]
api_keyword_args: {max_tokens: 24, temperature: 0}
expected_response:
  per_prompt:
  - {}
  - {prompt_tokens: 96, completion_tokens: 24}
acceptance_rate: {baseline: 0.5, tolerance: 0.98}
"""
DRAFTS = (
    '--dtype float32 --speculative-config \'{"method": "ngram", "num_speculative_tokens": 2, '
    '"prompt_lookup_max": 3, "prompt_lookup_min": 1}\''
)


def test_checks_of_content_are_made(tmp_path):
    path = case(tmp_path, "smollm2", performance("perf", 4, 32))
    text = path.read_text(encoding="utf-8").replace("--dtype float32", DRAFTS)
    path.write_text(text + ASKED, encoding="utf-8")
    with running(path, tmp_path, "--bench", "smoke") as run:
        verdict = run.wait().verdict
    assert (run.process.returncode, verdict["verdict"]) == (0, "pass"), verdict["cause"]
    made = {name: status for name, (status, _) in run.checks().items() if name[:8] == "content "}
    assert len(made) == 6
    assert set(made.values()) == {"pass"}
    [result] = verdict["benchmarks"]
    assert 0 < result["metrics"]["acceptance_rate_pos_1"] < 1
