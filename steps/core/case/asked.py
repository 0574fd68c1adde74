"""The form of what a case asks to be measured and to be checked, in every dialect.

Enters: nothing. Leaves: ``BENCHMARK`` and :func:`checks`, rule sets for ``steps.core.case.fields``,
and what makes a rule set. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
)
#: Checks of content, by what ``test_content`` calls them, and the keys of the case that each reads;
#: each is an entry of ``steps.checks``.
READS: Mapping[str, frozenset[str]] = {
    "completion": frozenset({"prompts", "api_keyword_args"}),
    "chat_completion": frozenset({"prompts", "api_keyword_args", "expected_response"}),
    "image": frozenset({"mm_request", "expected_response"}),
    "messages": frozenset({"prompts", "api_keyword_args"}),
    "spec_decode_acceptance": frozenset({"acceptance_rate"}),
    "check_rank0_process_count": frozenset(),
    "benchmark_comparisons": frozenset({"benchmark_comparisons_args"}),
}
#: Those that look at the benchmarks, and are made behind them.
BEHIND = frozenset({"spec_decode_acceptance", "benchmark_comparisons"})
#: No fleet is so large: nodes, and ranks or devices of all of them.
MAX_NODES = 1024
MAX_RANKS = 65536

Field = dict[str, Any]


def field(kind: Any, doc: str, *, ours: bool = False, **rules: Any) -> Field:
    """One cerberus rule set with the sentence that documents it."""
    return {"type": kind, "meta": {"doc": doc, "ours": ours}, **rules}


def count(doc: str, **rules: Any) -> Field:
    """A whole number from 1 on."""
    return field("strict_integer", doc, min=1, **{"max": MAX_RANKS, **rules})


_NUMBER = ["number", "numeric_string"]
_WHOLE = ["strict_integer", "whole_string"]
_SWITCH = ["boolean", "switch_string"]
#: Tokens that a prompt or an answer may have; more is no number of tokens.
_TOKENS = 100_000_000

BENCHMARK: Field = {
    "case_type": field(
        "string",
        "What is measured.",
        required=True,
        allowed=["performance", "accuracy", "spec_decode"],
    ),
    "dataset_path": field("string", "Hub id of the data set, resolved in ModelScope's cache."),
    "dataset_path_local": field("string", "Directory or file of the data set on the leader."),
    "request_conf": field(
        "string", "AISBench request configuration, such as `vllm_api_stream_chat`."
    ),
    "dataset_conf": field(
        "string",
        "AISBench data set configuration, such as `gsm8k/gsm8k_gen_0_shot_cot_str_perf`; `random`: "
        "the random prompts of `--bench vllm-bench`.",
    ),
    "num_prompts": field(_WHOLE, "Requests to send; absent: the whole data set.", min_value=1),
    "max_out_len": field(_WHOLE, "Output tokens asked of each request.", min_value=1),
    "input_len": field(
        _WHOLE,
        "Tokens of each prompt, where they are random (`dataset_conf: random`; default 1024).",
        ours=True,
        min_value=1,
    ),
    "batch_size": field(_WHOLE, "Most requests in flight at once.", min_value=1),
    "request_rate": field(_NUMBER, "Requests/s (Poisson); 0: no limit.", min_value=0),
    "baseline": field(
        [*_NUMBER, "list"],
        "Expected output token throughput (tokens/s), or score; for spec_decode a list, the "
        "acceptance rate of each position. 0 and 1 gate nothing on a performance benchmark.",
        schema=field("number", "The rate of a position, from 0 to 1.", min_value=0, max=1),
    ),
    "threshold": field(
        _NUMBER,
        "performance: least share of the baseline (default 0.97); "
        "accuracy: widest distance from the baseline (default 1); spec_decode: how far a rate may "
        "fall below its baseline, as a share of it (default 0.05).",
        min_value=0,
    ),
    "temperature": field(_NUMBER, "Sampling temperature; 0 for performance, 0.6 for accuracy."),
    "top_p": field(_NUMBER, "Nucleus sampling."),
    "top_k": field(_NUMBER, "Top-k sampling."),
    "min_p": field(_NUMBER, "Min-p sampling."),
    "seed": field(_NUMBER, "Seed of the sampling.", nullable=True),
    "presence_penalty": field(_NUMBER, "Presence penalty."),
    "repetition_penalty": field(_NUMBER, "Repetition penalty."),
    "thinking": field(
        _SWITCH,
        "Ask the chat template for thinking. `false` asks for nothing: the template decides.",
    ),
    "reasoning_effort": field(
        "string", "How hard to think, in the model's own words.", empty=False
    ),
    "num_warmups": field(_WHOLE, "Requests before the load that do not count.", min_value=0),
    "ignore_eos": field(_SWITCH, "Generate exactly `max_out_len` tokens."),
    "no_pred": field(_SWITCH, "Score the whole answer: thinking is not taken out of it."),
    "trust_remote_code": field(_SWITCH, "Let the tokenizer run code of its own (default true)."),
    "tpot_threshold": field(_NUMBER, "Widest mean time per output token in ms.", min_value=0),
    "ttft_threshold": field(
        _NUMBER, "Widest mean time to the first token in ms; 0: not judged.", min_value=0
    ),
    "input_throughput_threshold": field(
        _NUMBER, "Least input token throughput (tokens/s).", min_value=0
    ),
    "model_path": field("string", "Tokenizer directory, where it is not the model's.", empty=False),
    "gates": field(
        "list",
        "Further conditions, `metric op value`, such as `ttft_p99_ms <= 2000` or "
        "`output_throughput >= 0.97 * baseline`.",
        ours=True,
        schema={"type": "string", "empty": False},
    ),
    "gate": field("string", "`none`: gates nothing, with a `reason`.", ours=True, allowed=["none"]),
    "reason": field("string", "Why `gate: none`.", ours=True, empty=False),
    "sweep": field(
        "dict",
        "Loads to measure one after another on the warm fleet: every combination of `batch_size`, "
        "`request_rate`, `max_out_len` (each a list, or a ladder `{from, to, times}` or "
        "`{from, to, step}`) and `dataset` (a list of mappings of the data set's keys).",
        ours=True,
        empty=False,
        schema={
            **{
                knob: field(["list", "dict"], f"Values of `{knob}`.", ours=True, empty=False)
                for knob in ("batch_size", "request_rate", "max_out_len")
            },
            "dataset": field(
                "list",
                "Data sets.",
                ours=True,
                empty=False,
                schema=field(
                    "dict",
                    "A data set.",
                    empty=False,
                    schema={
                        key: field("string", "As the benchmark's.", empty=False)
                        for key in ("dataset_path", "dataset_path_local", "dataset_conf")
                    },
                ),
            ),
        },
    ),
    "find": field(
        "dict",
        "The largest load that holds limits, searched for on the warm fleet.",
        ours=True,
        schema={
            "maximise": field(
                "string",
                "`batch_size` or `request_rate`: that load; `output_throughput`: by `batch_size`.",
                ours=True,
                required=True,
                allowed=["output_throughput", "request_rate", "batch_size"],
            ),
            "subject_to": field(
                "list",
                "Limits, `metric op value`, such as `tpot_p99_ms <= 50`.",
                ours=True,
                required=True,
                empty=False,
                schema={"type": "string", "empty": False},
            ),
            "within": field(
                "list",
                "Least and largest load.",
                ours=True,
                required=True,
                schema=field("number", "A load.", min_value=0.001, max=1_000_000),
                minlength=2,
                maxlength=2,
            ),
            "tolerance": field(
                "number",
                "How well the border is to be known, as a share of it (default 0.05).",
                ours=True,
                min_value=0.01,
                max=0.5,
            ),
        },
    ),
    "repeat": count(
        "How often to measure, the caches the same each time; the median counts.", ours=True, max=20
    ),
    "confirm": field(
        "strict_integer",
        "How often to measure again, the caches as the first time, before a performance miss "
        "counts (default 2; 0: never). The median of all measurements is judged.",
        ours=True,
        min=0,
        max=20,
    ),
}


_EXPECTED: Field = {
    "prompt_tokens": count("chat_completion: tokens of the prompt.", max=_TOKENS),
    "completion_tokens": count(
        "chat_completion: tokens of the answer; the request asks for just so many.", max=_TOKENS
    ),
    "max_model_len": count(
        "chat_completion: what both may be together; else `--max-model-len`.", max=_TOKENS
    ),
    "status_code": field("strict_integer", "image: the HTTP status.", min=100, max=599),
    "assert_not_empty": field("boolean", "image: the answer has text (default true)."),
    "content_contains": field(
        "list", "image: every one stands in the answer.", schema=field("string", "A text.")
    ),
    "min_length": field("strict_integer", "image: least characters.", min=0, max=_TOKENS),
    "max_length": field("strict_integer", "image: most characters.", min=0, max=_TOKENS),
}


_PROMPT = field(
    ["string", "dict"],
    "A prompt.",
    empty=False,
    schema={
        "seed": field("string", "What the text repeats.", required=True, empty=False),
        "target_tokens": count(
            "Its tokens, the chat template's among them.", required=True, max=1_000_000
        ),
    },
)
_PICTURES: Field = {
    "images": field(
        "list",
        "Paths, `file://` URLs or data sets of a hub.",
        schema=field("string", "A picture.", empty=False),
    ),
    "image_path": field("string", "One picture.", empty=False),
    "text_prompt": field("string", "The question.", empty=False),
    "messages": field(
        "list",
        "The whole conversation; an empty `image_url` takes the next picture, `{IMAGE_0}` the "
        "first.",
        empty=False,
        schema=field("dict", "A message."),
    ),
    "api_args": field("dict", "Further fields of the request."),
}
_ACCEPTANCE: Field = {
    "baseline": field("number", "The rate, from 0 to 1.", min_value=0, max=1),
    "tolerance": field("number", "How far off, as a share of it (default 0.05).", min_value=0),
}
_COMPARISON: Field = {
    "metric": field("string", "What is compared: the mean.", allowed=["TTFT"]),
    "baseline": field("string", "A benchmark.", required=True),
    "target": field("string", "The benchmark that is judged.", required=True),
    "ratio": field("number", "Factor on the baseline (default 1).", min_value=0),
    "operator": field("string", "Default `<`.", allowed=["<", ">", "<=", ">="]),
}


def checks(prompts: str, *, nullable: bool) -> Field:
    """The keys of the checks of content.

    Args:
        prompts: what the dialect calls the prompts.
        nullable: upstream reads a null of this dialect as nothing; in the others it dies of it.
    """
    return {
        "test_content": field(
            "list",
            f"Checks of content: {', '.join(f'`{name}`' for name in READS)}.",
            nullable=nullable,
            schema=field("string", "A check.", allowed=list(READS)),
        ),
        prompts: field(
            "list",
            "Prompts of the checks: text, or `{seed, target_tokens}`, a text of so many tokens.",
            empty=False,
            schema=_PROMPT,
        ),
        "api_keyword_args": field(
            ["dict", "list"],
            "Further fields of the requests: of all, or a list, one entry a prompt.",
            nullable=True,
        ),
        "expected_response": field(
            "dict",
            "What the answers must be: of all, or `per_prompt`, one entry a prompt.",
            nullable=nullable,
            schema={
                **_EXPECTED,
                "per_prompt": field(
                    "list",
                    "What the answer to each prompt must be.",
                    schema=field("dict", "One answer.", schema=_EXPECTED),
                ),
            },
        ),
        "mm_request": _of_check("image", "The request.", nullable, _PICTURES),
        "acceptance_rate": _of_check(
            "spec_decode_acceptance",
            "The share of the first drafted position that is accepted.",
            nullable,
            _ACCEPTANCE,
        ),
        "benchmark_comparisons_args": field(
            "list",
            "Comparisons of `benchmark_comparisons`: target op baseline x ratio.",
            nullable=nullable,
            schema=field("dict", "One comparison.", schema=_COMPARISON),
        ),
        "checks": field(
            "dict",
            "How checks of content are made.",
            ours=True,
            schema={
                "stop": field("boolean", "A failed check ends the run (default false).", ours=True)
            },
        ),
    }


def _of_check(check: str, doc: str, nullable: bool, schema: Field) -> Field:
    return field("dict", f"{doc} Read by `{check}`.", nullable=nullable, schema=schema)
