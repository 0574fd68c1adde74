"""Gates: what a benchmark's numbers must satisfy.

Enters: the text of a gate, and metrics. Leaves: a :class:`Gate` or a
:class:`GateResult`. Touches nothing.

Upstream's rules: a performance benchmark passes when its output token
throughput is at least ``threshold`` (default 0.97) times ``baseline``; an
accuracy benchmark when its score is within ``threshold`` (default 1) of ``baseline``;
a spec_decode benchmark when the acceptance rate of each position is at least its
baseline less ``threshold`` (default 0.05) of it.

``accuracy_low`` and ``accuracy_high`` are the 95 % confidence interval of the
score, from the number of samples: ``accuracy_high >= 92`` fails only when the
score is below 92 beyond chance.

``goodput`` are the requests/s that met every latency limit of the benchmark, each by itself.
``capacity`` is what ``find`` finds: the largest load that holds its limits, and the baseline is
held against it; it lies between ``capacity_low`` and ``capacity_high`` with 95 % certainty.

``kv_cache_usage_max`` is the fullest KV cache of any engine (1: full), ``rank_imbalance`` the
tokens of a side's busiest engine over the mean of that side, ``acceptance_pos1`` another name of
the first drafted position's rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from steps.core.case.numbers import LIMIT, is_finite

#: Drafted positions of which the acceptance is known, and what their metrics begin with.
POSITIONS, ACCEPTED = 16, "acceptance_rate_pos_"
ACCEPTANCE = tuple(f"{ACCEPTED}{position}" for position in range(POSITIONS))
#: Metric -> (unit, whether more is better). The names of the harness's own metrics.
METRICS: dict[str, tuple[str, bool]] = {
    "output_throughput": ("token/s", True),
    "input_throughput": ("token/s", True),
    "total_throughput": ("token/s", True),
    "prefill_throughput": ("token/s", True),
    "request_throughput": ("req/s", True),
    "duration_ms": ("ms", False),
    "success_ratio": ("", True),
    "goodput": ("req/s", True),
    "capacity": ("", True),
    "capacity_low": ("", True),
    "capacity_high": ("", True),
    "accuracy": ("%", True),
    "accuracy_low": ("%", True),
    "accuracy_high": ("%", True),
    **{
        f"{name}_{stat}_ms": ("ms", False)
        for name in ("e2el", "ttft", "tpot", "itl")
        for stat in ("mean", "min", "max", "median", "p75", "p90", "p95", "p99")
    },
    "kv_cache_usage_max": ("", False),
    "preemptions": ("", False),
    "rank_imbalance": ("", False),
    "drafts": ("", True),
    **dict.fromkeys(ACCEPTANCE, ("", True)),
}
#: What only the engines' own metrics tell, looked at while the benchmark runs.
PRESSURE = ("kv_cache_usage_max", "preemptions", "rank_imbalance")
#: Another name of acceptance, which counts positions from 1.
_FROM_ONE = re.compile(r"acceptance_pos([1-9]\d?)")
#: Judged whatever the load was; and what stand-ins are told to keep, in a rehearsal.
ALWAYS = ("success_ratio",)
REHEARSED = (*ALWAYS, *ACCEPTANCE)
_FORM = re.compile(
    r"^\s*(?P<metric>[a-z0-9_]+)\s*(?P<op><=|>=|==|<|>)\s*(?P<number>-?\d+(\.\d+)?)"
    r"\s*(?P<scaled>\*\s*baseline)?\s*$"
)
_BASELINE_FIRST = re.compile(
    r"^\s*(?P<metric>[a-z0-9_]+)\s*(?P<op><=|>=|==|<|>)\s*baseline"
    r"(\s*\*\s*(?P<number>-?\d+(\.\d+)?))?\s*$"
)


@dataclass(frozen=True)
class Gate:
    """``metric op number``, the number perhaps times the baseline."""

    metric: str
    op: str
    number: float
    of_baseline: bool = False

    def __str__(self) -> str:
        tail = " * baseline" if self.of_baseline else ""
        return f"{self.metric} {self.op} {self.number:g}{tail}"


@dataclass(frozen=True)
class GateResult:
    """A gate held against a measurement; ``passed`` is None when skipped."""

    gate: str
    metric: str
    limit: float | None
    found: float | None
    passed: bool | None
    reason: str = ""


def parse(text: str) -> Gate:
    """Read ``metric op value``.

    Raises:
        ValueError: the text has another form or names an unknown metric; the
            message says what was expected.
    """
    short = text if len(text) <= 200 else ""
    match = _FORM.match(short) or _BASELINE_FIRST.match(short)
    if not match:
        raise ValueError("expected 'metric op value', such as 'ttft_p99_ms <= 2000'")
    metric = match["metric"]
    if position := _FROM_ONE.fullmatch(metric):
        metric = f"{ACCEPTED}{int(position[1]) - 1}"
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}', expected one of {', '.join(METRICS)}")
    scaled = "baseline" in text
    number = float(match["number"] or 1)
    if not is_finite(number):
        raise ValueError(f"expected a number below {LIMIT:g}, such as 'ttft_p99_ms <= 2000'")
    return Gate(metric, match["op"], number, scaled)


def each(gates: Iterable[Gate]) -> dict[str, float]:
    """Milliseconds that one request may take, by ``ttft``, ``tpot`` and ``e2el``, of all limits."""
    found: dict[str, float] = {}
    for gate in gates:
        name, _, stat = gate.metric.partition("_")
        timed = name in ("ttft", "tpot", "e2el") and stat.endswith("_ms")
        if timed and gate.op in ("<=", "<") and not gate.of_baseline:
            found[name] = min(gate.number, found.get(name, gate.number))
    return found


def hold(gate: Gate, metrics: Mapping[str, float], baseline: float | None) -> GateResult:
    """Hold one gate against measured metrics; one that is absent or not finite fails it."""
    limit = gate.number
    if gate.of_baseline:
        if baseline is None:
            return GateResult(str(gate), gate.metric, None, None, False, "there is no baseline")
        limit = gate.number * baseline
    if not is_finite(limit):
        reason = f"its limit {limit:g} is no number"
        return GateResult(str(gate), gate.metric, None, None, False, reason)
    found = metrics.get(gate.metric)
    if found is None:
        return GateResult(str(gate), gate.metric, limit, None, False, "was not measured")
    if not is_finite(found):
        return GateResult(str(gate), gate.metric, limit, None, False, "what was found is no number")
    passed = {
        "<=": found <= limit,
        ">=": found >= limit,
        "<": found < limit,
        ">": found > limit,
        "==": abs(found - limit) <= 1e-9 * max(1.0, abs(limit)),
    }[gate.op]
    return GateResult(str(gate), gate.metric, limit, found, passed)


def upstream(
    case_type: str,
    baseline: float | None,
    threshold: float | None,
    rates: Sequence[float] = (),
    found: str = "output_throughput",
) -> tuple[Gate, ...]:
    """The gates that ``baseline`` and ``threshold`` mean; none without a baseline.

    Args:
        found: the metric that is held against the baseline of a performance benchmark.
    """
    share = 1 - (0.05 if threshold is None else threshold)
    drafted = (
        Gate(f"{ACCEPTED}{position}", ">=", round(rate * share, 9))
        for position, rate in enumerate(rates)
    )
    if baseline is None:
        return tuple(drafted)
    if case_type == "performance":
        share = 0.97 if threshold is None else threshold
        return (Gate(found, ">=", share, True),)
    width = 1.0 if threshold is None else threshold
    return (
        Gate("accuracy", ">=", round(baseline - width, 9)),
        Gate("accuracy", "<=", round(baseline + width, 9)),
    )
