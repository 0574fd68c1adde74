"""What an engine's own counters say: their names (``/metrics``, vLLM 0.32), and reading them.

Enters: the text of ``/metrics``. Leaves: sums. Touches nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict

from steps.core.case.numbers import Refused, finite

PATH = "/metrics"
#: Requests that ended, by engine; prompt tokens, by where their KV came from.
REQUESTS, ENGINE = "vllm:request_success_total", "engine"
TOKENS, SOURCE = "vllm:prompt_tokens_by_source_total", "source"
#: Sources: another engine, or the decoder itself.
HANDED_OVER, COMPUTED = "external_kv_transfer", "local_compute"
#: Steps in which tokens were drafted; drafted tokens that were accepted, by position.
DRAFTS, ACCEPTED, POSITION = (
    "vllm:spec_decode_num_drafts",
    "vllm:spec_decode_num_accepted_tokens_per_pos",
    "position",
)
_LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_PREFIX_CACHE = re.compile(
    r"^vllm:(?:external_)?prefix_cache_(hits|queries)(?:_total)?(?:\{.*\})?\s+(\S+)", re.MULTILINE
)


def by_label(text: str, metric: str, label: str) -> dict[str, float]:
    """The sum of a counter for each value of one of its labels.

    Raises:
        Refused: it is no number that a counter can have.
    """
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and match["name"] in (metric, f"{metric}_total"):
            labels = dict(_LABEL.findall(match["labels"] or ""))
            try:
                found[labels.get(label, "")] += finite(match["value"], least=0)
            except Refused as error:
                raise Refused(f"its /metrics has for {metric}: {error}") from None
    return dict(found)


def prefix_cache(text: str) -> dict[str, float]:
    """Prompt tokens that the prefix caches gave (``hits``), and that were looked up (``queries``).

    Raises:
        ValueError: no number.
    """
    found: dict[str, float] = defaultdict(float)
    for name, value in _PREFIX_CACHE.findall(text):
        found[name] += float(value)
    return dict(found)


def drafted(text: str) -> tuple[float, dict[int, float]] | None:
    """Steps with drafts, and accepted tokens by position; None where the engine tells neither.

    Raises:
        Refused: one of them is no number that a counter can have.
    """
    if DRAFTS not in text:
        return None
    accepted = by_label(text, ACCEPTED, POSITION)
    return sum(by_label(text, DRAFTS, ENGINE).values()), {
        int(position): count for position, count in accepted.items() if position.isdecimal()
    }
