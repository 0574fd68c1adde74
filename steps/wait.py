"""wait: until the fleet is ready, proven by a completion.

Enters: a :class:`NodeRun`. Leaves: events that say who became ready when, and
a check ``completion``. Touches: short HTTP requests to the servers and the
proxy.

Ready means: every API server and the proxy answer their probe with 200 within
its time limit, and one real completion through the endpoint that the
benchmarks will use returned text. A 503 is not ready.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from steps.core.node import alone, http
from steps.core.node.http import Answer, look
from steps.core.node.noderun import SELDOM, NodeRun, StepFailed
from steps.core.plan.plan import NodePlan, Process
from steps.core.record import evidence
from steps.core.record.records import Check

#: Seconds between two looks at a server: this part of what it has taken so far, between the two.
PROBE_PART, PROBE_LEAST, PROBE_MOST = 0.05, 0.05, 1.0
ATTEMPTS, ATTEMPTS_REAL = 5, 8
ATTEMPT_SECONDS, ATTEMPT_SECONDS_REAL = 10.0, 120.0


@dataclass
class _Watch:
    """One server that is waited for."""

    node: NodePlan
    process: Process
    ready: threading.Event = field(default_factory=threading.Event)
    answer: Answer = field(default_factory=lambda: Answer(False, "not asked yet"))

    @property
    def name(self) -> str:
        return f"{self.node.name} {self.process.name}"


def ready(run: NodeRun, proxy: bool | None = None) -> None:
    """Wait until every API server, the pool and the proxy answer their probes.

    Args:
        proxy: whether it is waited for, or all the others; None: everything.

    Raises:
        StepFailed: the budget or the stall limit is used up; names the servers that are missing.
    """
    http.prepare()  # while the servers load
    began = time.monotonic()
    watches = [
        _Watch(node, process)
        for node, process in run.plan.probes()
        if proxy in (None, process.kind == "proxy")
    ]
    watches.sort(key=lambda watch: watch.process.kind == "proxy")
    for watch in watches:
        threading.Thread(target=_probe, args=(run, watch, began), daemon=True).start()

    def missing() -> list[_Watch]:
        return [watch for watch in watches if not watch.ready.is_set()]

    def blame() -> tuple[NodePlan, str]:
        first = missing()[0]
        return first.node, first.process.name

    run.until(
        lambda: not missing(),
        lambda: ", ".join(_describe(run, watch) for watch in missing()),
        every=SELDOM,
        blame=blame,
    )


def completion(run: NodeRun) -> None:
    """Ask the endpoint for one completion, a bounded number of times.

    Raises:
        StepFailed: no attempt returned text.
    """
    endpoint = run.plan.endpoint
    limit = ATTEMPT_SECONDS if run.plan.rehearsed else ATTEMPT_SECONDS_REAL
    last = http.Reply(0, "", "not asked yet")
    attempts = ATTEMPTS if run.plan.rehearsed else ATTEMPTS_REAL
    for attempt in range(attempts):
        last = http.ask(endpoint.access, endpoint.model, "What is 2 + 3?", 16, run.ended, limit)
        run.check_end()
        if last.text.strip():
            run.events.emit("answer", url=endpoint.url, text=last.text[:120], attempt=attempt + 1)
            run.checks.append(
                Check("completion", "pass", f"{last.text.strip()[:80]!r} from {endpoint.url}")
            )
            return
        run.events.emit("note", text=f"completion {attempt + 1} of {attempts}: {last.error}")
        run.sleep(min(0.2 * 2**attempt, 3.0))
    run.checks.append(Check("completion", "fail", last.error))
    raise StepFailed(
        run.cause_of(
            "completion",
            "functional",
            f"{attempts} completions through {endpoint.url} returned no text; the last: "
            f"{last.error}",
            process="proxy" if endpoint.kind == "proxy" else "server",
            evidence=evidence.of_log(run.dir.path / "proxy.log").lines,
            hint="Every server is healthy, so look at the handoff: the proxy's log, then the "
            "decoder's.",
        )
    )


def _probe(run: NodeRun, watch: _Watch, began: float) -> None:
    """Probe one server until it is ready or the run ends."""
    probe = watch.process.probe
    assert probe is not None
    while not run.ended.is_set():
        answer = look(probe)
        if answer.detail != watch.answer.detail:
            run.progress()
        watch.answer = answer
        if answer.ok:
            seconds = round(time.monotonic() - began, 3)
            run.progress()
            run.events.emit("ready", who=watch.name, url=probe.url, seconds=seconds)
            watch.ready.set()
            run.ended.stir()
            return
        taken = time.monotonic() - began
        run.ended.wait(min(max(PROBE_PART * taken, PROBE_LEAST), PROBE_MOST))


def _describe(run: NodeRun, watch: _Watch) -> str:
    log = run.run_dir.node(watch.node.index).path / watch.process.log
    line = evidence.last_line(log)
    text = f"{watch.name} ({watch.answer.detail}"
    text += f"; its log ends: {line}" if line else ""
    unseen = _headless(run, watch.process)
    if unseen:
        text += f"; it waits for headless ranks that nobody can ask: {', '.join(unseen)}"
    return f"{text})"


def _headless(run: NodeRun, process: Process) -> list[str]:
    """Headless servers of a server's group: it is not ready before they are."""
    return [
        f"{node.name} {other.name}"
        for node, other in run.plan.servers()
        if other.headless and other.group == process.group and process.group
    ]


main = alone.step(
    "wait",
    __doc__,
    lambda _: [("load", ready), ("probe", completion)],
    needs=True,
    waits=True,
)

if __name__ == "__main__":
    raise SystemExit(main())
