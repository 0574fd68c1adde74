"""What an engine's own counters say: their names (``/metrics``, vLLM 0.32), and reading them.

Enters: the text of ``/metrics``. Leaves: sums, and series by short names. Touches nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

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
#: Sampled gauges and counters: vLLM's name -> ours, and the label beside the engine that is kept.
_SAMPLED = {
    "num_requests_running": ("running", ""),
    "num_requests_waiting": ("waiting", ""),
    "kv_cache_usage_perc": ("kv_usage", ""),
    "num_preemptions": ("preemptions", ""),
    "prompt_tokens": ("prompt_tokens", ""),
    "generation_tokens": ("generation_tokens", ""),
    "prefix_cache_queries": ("prefix_queries", ""),
    "prefix_cache_hits": ("prefix_hits", ""),
    "external_prefix_cache_queries": ("external_queries", ""),
    "external_prefix_cache_hits": ("external_hits", ""),
    "request_success": ("requests", "finished_reason"),
    "spec_decode_num_drafts": ("drafts", ""),
    "spec_decode_num_accepted_tokens_per_pos": ("accepted", "position"),
    "nixl_num_failed_transfers": ("kv_failed", ""),
    "nixl_num_kv_expired_reqs": ("kv_expired", ""),
    "nixl_bytes_transferred_sum": ("kv_bytes", ""),
}
#: Sampled histograms, with sum and count; those whose buckets are kept too.
_HISTOGRAMS = {
    "request_queue_time_seconds": "queue",
    "request_prefill_time_seconds": "prefill",
    "request_decode_time_seconds": "decode",
    "nixl_xfer_time_seconds": "kv_transfer",
}
for _name, _ours in _HISTOGRAMS.items():
    _SAMPLED |= {f"{_name}_{part}": (f"{_ours}_{part}", "") for part in ("sum", "count")}
    _SAMPLED[f"{_name}_bucket"] = (f"{_ours}_bucket", "le")
#: Sampled with sum and count only; releases before 0.11 say the second one's time otherwise.
for _name, _ours in (
    ("time_to_first_token_seconds", "ttft"),
    ("inter_token_latency_seconds", "itl"),
    ("time_per_output_token_seconds", "itl"),
):
    _SAMPLED |= {f"{_name}_{part}": (f"{_ours}_{part}", "") for part in ("sum", "count")}
#: What is told of an engine's load while it goes on, by our names.
LOAD = (
    "running", "waiting", "kv_usage", "prompt_tokens", "generation_tokens",
    "ttft_sum", "ttft_count", "itl_sum", "itl_count",
)  # fmt: skip
#: Series that one endpoint may have; those of a server that is no engine.
MOST, MOST_OTHER = 4000, 64
_PLAIN = re.compile(r"[\w.+-]{0,40}", re.ASCII)
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


class Reader:
    """Reads the sampled series of one endpoint again and again.

    An endpoint prints its lines in the same order each time: their places are learnt, and a
    look costs no more than the lines that are wanted.

    Args:
        engine: it is vLLM's; else whatever has a plain name is taken, under that name.
    """

    def __init__(self, engine: bool = True) -> None:
        self._engine = engine
        self._places: list[tuple[int, str]] = []
        self._count = -1
        #: ``name|engine|label`` of each series.
        self.keys: tuple[str, ...] = ()

    def read(self, text: str) -> tuple[bool, list[str]]:
        """Whether the series are others than before, and each one's value as it is written."""
        lines = text.split("\n")
        if len(lines) == self._count:
            words = [lines[at][len(head) :] for at, head in self._places]
            if all(lines[at].startswith(head) for at, head in self._places):
                return False, words
        found = list(self._learn(lines))[: MOST if self._engine else MOST_OTHER]
        self._count = len(lines)
        self._places = [(at, head) for at, head, _ in found]
        before, self.keys = self.keys, tuple(key for _, _, key in found)
        return self.keys != before, [lines[at][len(head) :] for at, head in self._places]

    def _learn(self, lines: list[str]) -> Iterator[tuple[int, str, str]]:
        seen = set()
        for at, line in enumerate(lines):
            match = _LINE.match(line)
            key = self._key(match) if match else None
            if match and key and key not in seen:
                seen.add(key)
                yield at, line[: match.start("value")], key

    def _key(self, match: re.Match[str]) -> str | None:
        if not self._engine:
            plain = not match["labels"] and match["name"].isascii() and len(match["name"]) < 80
            return f"{match['name']}||" if plain else None
        name = match["name"].removeprefix("vllm:").removesuffix("_total")
        if name not in _SAMPLED or not match["name"].startswith("vllm:"):
            return None
        ours, kept = _SAMPLED[name]
        labels = dict(_LABEL.findall(match["labels"] or ""))
        words = labels.get(ENGINE, "0"), labels.get(kept, "") if kept else ""
        return f"{ours}|{words[0]}|{words[1]}" if all(map(_PLAIN.fullmatch, words)) else None
