"""The checks of content that a case asks for, as values, whichever dialect says so.

Enters: the keys of ``asked.checks``. Leaves: a :class:`Content`, and what is wrong with it.
Touches nothing.

Meanings and defaults are upstream's (vllm-ascend 0.30). Where it drops what does not fit (a list of
expectations that is too short), the case is wrong here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from steps.core.case.asked import BEHIND, READS

#: Takes a rule, a message, a hint and the words of a YAML path.
Report = Callable[..., None]
#: A case that asks more than this of a check is none.
MOST_PROMPTS = 1000


@dataclass(frozen=True)
class Prompt:
    """A prompt; with ``target_tokens`` its text is repeated to so many tokens."""

    text: str
    target_tokens: int = 0


@dataclass(frozen=True)
class Expected:
    """What an answer must be; None is not looked at."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    max_model_len: int | None = None
    status_code: int | None = None
    assert_not_empty: bool = True
    content_contains: tuple[str, ...] = ()
    min_length: int | None = None
    max_length: int | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether anything is said of tokens."""
        return any((self.prompt_tokens, self.completion_tokens, self.max_model_len))


@dataclass(frozen=True)
class Exchange:
    """A prompt, further fields of its request, and what its answer must be."""

    prompt: Prompt
    args: Mapping[str, Any] = field(default_factory=dict)
    expected: Expected = field(default_factory=Expected)


@dataclass(frozen=True)
class ImageRequest:
    """The request of the check ``image``; ``base`` is what relative paths are relative to."""

    images: tuple[str, ...] = ()
    question: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)
    expected: Expected = field(default_factory=Expected)


@dataclass(frozen=True)
class Acceptance:
    """The acceptance rate of the first drafted position; without a baseline nothing is judged."""

    baseline: float | None = None
    tolerance: float = 0.05


@dataclass(frozen=True)
class Comparison:
    """``target`` op ``baseline`` x ``ratio``, both the mean of a metric of a benchmark."""

    metric: str
    target: str
    baseline: str
    ratio: float = 1.0
    operator: str = "<"


@dataclass(frozen=True)
class Content:
    """All checks of a case, by ``kinds`` in the order in which it names them.

    Attributes:
        stop: a failed check ends the run before the benchmarks.
    """

    kinds: tuple[str, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    image: ImageRequest = field(default_factory=ImageRequest)
    acceptance: Acceptance = field(default_factory=Acceptance)
    comparisons: tuple[Comparison, ...] = ()
    stop: bool = False

    @property
    def before(self) -> tuple[str, ...]:
        """The checks that come before the benchmarks."""
        return tuple(kind for kind in self.kinds if kind not in BEHIND)


@dataclass(frozen=True)
class Dialect:
    """What a dialect calls the prompts, and what it takes where the case says nothing."""

    prompts: str
    prompt: str
    kinds: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)


#: Of several nodes, in both dialects; of one node (``test_cases``).
SEVERAL = Dialect("chat_prompts", "Hello!")
SINGLE = Dialect("prompts", "San Francisco is a", ("completion",), {"max_tokens": 10})


def build(
    data: Mapping[str, Any],
    dialect: Dialect,
    benchmarks: Mapping[str, str],
    problem: Report,
    *at: Any,
) -> Content:
    """The checks of a case whose form is right; ``problem`` is told what is wrong with them.

    Args:
        benchmarks: name -> case type of each.
        at: the YAML path of the case in its file.
    """

    def wrong(message: str, hint: str, *path: Any) -> None:
        problem("MN023", message, hint, *at, *path)

    for number, entry in enumerate(data.get("api_keyword_args") or ()):
        if isinstance(data["api_keyword_args"], list) and not isinstance(entry, dict):
            message, hint = f"found {entry!r:.40}, expected a mapping", "Of one prompt's request."
            wrong(message, hint, "api_keyword_args", number)
            return Content()
    kinds = tuple(dict.fromkeys(data.get("test_content", dialect.kinds) or ()))
    expected = data.get("expected_response") or {}
    for key in ("api_keyword_args", "mm_request"):
        if data.get(key):
            plain(data[key], problem, *at, key)
    if "per_prompt" in expected and len(expected) > 1:
        hint = "What holds for all stands in each entry of per_prompt."
        wrong("has per_prompt and keys beside it", hint, "expected_response")
    flat = {key: value for key, value in expected.items() if key != "per_prompt"}
    acceptance = data.get("acceptance_rate") or {}
    if "benchmark_comparisons" in kinds and not data.get("benchmark_comparisons_args"):
        hint = "Add benchmark_comparisons_args, or take benchmark_comparisons out."
        wrong("asks for benchmark_comparisons, but compares nothing", hint, "test_content")
    return Content(
        kinds=kinds,
        exchanges=tuple(_exchanges(data, dialect, expected, flat, wrong)),
        image=_image(data.get("mm_request") or {}, _expected(flat)),
        acceptance=Acceptance(
            acceptance.get("baseline"), float(acceptance.get("tolerance", Acceptance.tolerance))
        ),
        comparisons=tuple(_comparisons(data, benchmarks, wrong)),
        stop=(data.get("checks") or {}).get("stop", False),
    )


def unread(
    data: Mapping[str, Any], kinds: tuple[str, ...], dialect: Dialect = SEVERAL
) -> Iterator[str]:
    """Keys that ask something of checks which the case does not ask for."""
    read = {key for kind in kinds for key in READS[kind]}
    for key in sorted({key for keys in READS.values() for key in keys} - read):
        name = dialect.prompts if key == "prompts" else key
        if data.get(name):
            yield name


def plain(value: Any, problem: Report, *path: Any) -> None:
    """What goes into a request or a file must be what JSON can hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            plain(inner, problem, *path, key)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            plain(inner, problem, *path, at)
    elif isinstance(value, float) and not math.isfinite(value):
        problem("MN006", f"found {value}, expected a finite number", "", *path)
    elif not isinstance(value, (str, int, float, type(None))):
        problem("MN006", f"found a {type(value).__name__}, expected text", "Quote it.", *path)


def _exchanges(
    data: Mapping[str, Any],
    dialect: Dialect,
    expected: Mapping[str, Any],
    flat: Mapping[str, Any],
    wrong: Callable[..., None],
) -> Iterator[Exchange]:
    """Each prompt with its arguments and expectations, all lists as long as the prompts."""
    prompts = data.get(dialect.prompts) or [dialect.prompt]
    args = data.get("api_keyword_args")
    each_args = args if isinstance(args, list) else [dialect.args if args is None else args]
    each = expected.get("per_prompt", [flat])
    for key, entries, listed in (
        ("api_keyword_args", each_args, isinstance(args, list)),
        ("expected_response", each, "per_prompt" in expected),
    ):
        if listed and len(entries) != len(prompts):
            path = (key, "per_prompt") if key == "expected_response" else (key,)
            message = f"has {len(entries)} entries, expected {len(prompts)}, one a prompt"
            wrong(message, f"Give one for each entry of {dialect.prompts}.", *path)
            return
    if len(prompts) > MOST_PROMPTS:
        wrong(
            f"has {len(prompts):,} prompts, expected at most {MOST_PROMPTS:,}", "", dialect.prompts
        )
        return
    for number, prompt in enumerate(prompts):
        yield Exchange(
            Prompt(prompt)
            if isinstance(prompt, str)
            else Prompt(prompt["seed"], prompt["target_tokens"]),
            each_args[number % len(each_args)],
            _expected(each[number % len(each)]),
        )


def _expected(entry: Mapping[str, Any]) -> Expected:
    return Expected(**{**entry, "content_contains": tuple(entry.get("content_contains") or ())})


def _image(entry: Mapping[str, Any], expected: Expected) -> ImageRequest:
    images = tuple(entry.get("images") or ())
    return ImageRequest(
        images=images or ((entry["image_path"],) if "image_path" in entry else ()),
        question=entry.get("text_prompt", ""),
        messages=tuple(entry.get("messages") or ()),
        args=entry.get("api_args") or {},
        expected=expected,
    )


def _comparisons(
    data: Mapping[str, Any], benchmarks: Mapping[str, str], wrong: Callable[..., None]
) -> Iterator[Comparison]:
    for at, entry in enumerate(data.get("benchmark_comparisons_args") or ()):
        for side in ("baseline", "target"):
            name, path = entry[side], ("benchmark_comparisons_args", at, side)
            if name not in benchmarks:
                listed = ", ".join(benchmarks) or "none"
                wrong(f"there is no benchmark '{name}'", f"The case has {listed}.", *path)
            elif benchmarks[name] != "performance":
                hint = "Only performance benchmarks have a TTFT."
                wrong(f"'{name}' is an {benchmarks[name]} benchmark", hint, *path)
        yield Comparison(
            entry.get("metric", "TTFT"),
            entry["target"],
            entry["baseline"],
            float(entry.get("ratio", 1)),
            entry.get("operator", "<"),
        )
