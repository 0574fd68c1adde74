"""Prefix caches between measurements: a further one must find what the first one found.

Enters: a plan. Leaves: a :class:`Way` to measure again, or the reason why there is none; how much
the caches gave. Touches: short HTTP requests to the servers and the proxy.

vLLM has the endpoints only with ``VLLM_SERVER_DEV_MODE=1``; older versions answer 200 whether
or not the reset worked, newer ones say ``success``. So the engines' own counters have the last
word (:func:`given`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steps.core.node import http
from steps.core.plan.plan import Access, BenchmarkPlan, NodePlan, Plan, Process
from steps.core.vllm import commandline, kvports, metrics

PREFIX = "/reset_prefix_cache"
RESETS = "VLLM_SERVER_DEV_MODE"
#: What else an engine remembers of a prompt; not every version has these.
OTHERS = ("/reset_mm_cache", "/reset_encoder_cache")
ABSENT = (404, 405, 501)
ATTEMPTS = 6
#: More of the prompt tokens than this, beyond the first measurement's share, make it a warm one.
TOLERANCE = 0.02
_CONNECTOR = re.compile(r"[\"']kv_connector[\"']\s*:\s*[\"']([^\"']*)")


@dataclass(frozen=True)
class Way:
    """How a benchmark can be measured again; ``text`` says it, or why it cannot be.

    ``prompts``: with other prompts.
    """

    ok: bool
    text: str
    prompts: bool = False


def way(
    plan: Plan,
    number: int,
    varies: bool,
    sleep: Callable[[float], Any],
    *,
    confirms: bool = False,
    always: bool = False,
) -> Way:
    """Bring the caches to the state that the first measurement of benchmark ``number`` found.

    Args:
        varies: the driver can send other prompts.
        confirms: a miss is to be confirmed; colder caches than the first's turn none green.
        always: the first measurement was begun in the same way.
    """
    if plan.benchmarks[number].benchmark.case_type != "performance":
        return Way(True, "")
    kept = keeps(plan)
    if not kept and all(_off(server) for _, server in plan.servers()):
        return Way(True, "prefix caching is off on every engine")
    began = "" if always else warmed(plan, number)
    reason = kept or ("" if confirms else began) or reset(plan, sleep)
    if not reason:
        text = "the prefix caches of every engine were reset in between"
        return Way(True, f"{text}, so colder than at first: {began}" if began else text)
    if varies:
        return Way(True, f"each time with other prompts ({reason})", prompts=True)
    return Way(False, reason)


def unable(plan: Plan, node: NodePlan, environment: Callable[[Process], Mapping[str, str]]) -> str:
    """Why a node's engines cannot be brought to the same state again, as it is known before they
    start; or empty.
    """
    if kept := keeps(plan):
        return kept
    for server in (process for process in node.processes if process.kind == "server"):
        if server.api and not _off(server) and environment(server).get(RESETS) in (None, "", "0"):
            return (
                f"{node.name} {server.name} has a prefix cache, and {PREFIX} only with {RESETS}=1; "
                "set that in env_common, or --no-enable-prefix-caching"
            )
    return ""


def keeps(plan: Plan) -> str:
    """What keeps prefixes outside the engines, where no reset of them reaches; or empty."""
    for node in plan.nodes:
        for process in node.processes:
            if process.kind == "pool":
                return "the KV pool keeps prefixes, and cannot be reset"
            config = commandline.read(process.argv).text("--kv-transfer-config")
            for name in _CONNECTOR.findall(config):
                if name not in kvports.HAND_OVER | {"MultiConnector"}:
                    return f"the connector {name} may keep prefixes, and cannot be reset"
    return ""


def warmed(plan: Plan, number: int) -> str:
    """Why the first measurement of benchmark ``number`` did not find empty caches; or empty."""
    entry = plan.benchmarks[number]
    for earlier in plan.benchmarks[:number]:
        if _data(earlier) == _data(entry):
            return (
                f"its first measurement found what '{earlier.benchmark.name}', with the same data "
                "set, left in the caches"
            )
    return ""


def _data(entry: BenchmarkPlan) -> tuple[str, str, str]:
    asked = entry.benchmark
    return entry.driver, asked.dataset_path, asked.dataset_path_local


def _off(server: Process) -> bool:
    return commandline.read(server.argv).off("--enable-prefix-caching")


def reset(plan: Plan, sleep: Callable[[float], Any]) -> str:
    """Reset the caches of every engine, and the proxy's; why they are not reset, or empty."""
    for node, server in plan.servers():
        # A headless server's ranks are reset by the API server that they serve.
        wrong = server.api and _reset(server.access, sleep)
        if wrong:
            return f"{node.name} {server.name} {wrong}"
    if plan.proxy and (wrong := _reset(plan.endpoint.access, sleep, optional=True)):
        return f"the proxy {wrong}"
    return ""


def _reset(to: Access, sleep: Callable[[float], Any], *, optional: bool = False) -> str:
    detail = ""
    for attempt in range(ATTEMPTS):
        status, text = _ask("POST", to.at(PREFIX))
        # A proxy keeps no KV; vllm-router answers 400 to paths that it does not know.
        if optional and 400 <= status < 500:
            return ""
        if status in ABSENT:
            return f"has no {PREFIX} (vLLM has it with VLLM_SERVER_DEV_MODE=1)"
        if status == 200 and not _refused(text):
            broken = [path for path in OTHERS if _ask("POST", to.at(path))[0] not in (200, *ABSENT)]
            return f"failed {broken[0]}" if broken else ""
        detail = f"HTTP {status}" if status not in (0, 200) else text[:200]
        if attempt + 1 < ATTEMPTS:
            sleep(0.25 * (attempt + 1))
    return f"did not reset its prefix cache: {' '.join(detail.split())}"


def _refused(text: str) -> bool:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and answer.get("success") is False


def given(plan: Plan) -> tuple[float, float] | None:
    """Prompt tokens that the caches gave, and that were looked up; None where no engine tells."""
    found: dict[str, float] = {}
    for _, server in plan.servers():
        if not server.api:
            continue
        status, text = _ask("GET", server.access.at(metrics.PATH))
        if status != 200:
            return None
        try:
            for name, value in metrics.prefix_cache(text).items():
                found[name] = found.get(name, 0.0) + value
        except ValueError:
            return None
    if len(found) < 2 or not all(map(math.isfinite, found.values())):
        return None
    return found["hits"], found["queries"]


def share(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """The share of prompt tokens that the caches gave between two looks."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def warmer(first: float | None, later: float | None, slack: float = TOLERANCE) -> bool:
    """Whether a later measurement got more from the caches than the first."""
    return first is not None and later is not None and later > first + slack


def _ask(method: str, to: Access) -> tuple[int, str]:
    """Status and text of an answer; status 0 and the reason without one."""
    reply = http.request(method, to, 10, most=http.METRICS)
    return reply.status, reply.error or reply.text
