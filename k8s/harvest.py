"""The end of a run on a cluster: wait for the nodes' ends, fetch their files, delete all.

Enters: the pods as the triage knows them. Leaves: every node's files in the run
directory, and nothing on the cluster. Touches the API: exec, delete.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from k8s import cleanup, fetch, manifest
from k8s.api.client import Api, ApiError
from k8s.api.follow import previous
from k8s.fetch import Fetched
from k8s.manifest import Order
from k8s.triage import MEMORY, Triage
from steps.core.errors import Exit
from steps.core.node import contract
from steps.core.plan.budgets import BUDGETS
from steps.core.record.events import read_events
from steps.core.record.records import Cause
from steps.core.record.rundir import write_text

#: How long a container that died gets to come back, holding its files.
REVIVAL = 20.0
FETCH_SECONDS = 3600.0
_BY_CODE = {2: "config", 130: "interrupted"}


class Harvest:
    """What is taken from the pods before they go.

    Attributes:
        triage: what is known of the pods, read under ``lock``.
        went: set when a pod is gone.
        deadline: when even an unfinished transfer must stop; an interrupt moves it.
    """

    def __init__(
        self, request: Any, api: Api, order: Order, triage: Triage, lock: threading.RLock
    ) -> None:
        self.request = request
        self.api = api
        self.order = order
        self.names = order.names
        self.events = request.events
        self.triage = triage
        self.lock = lock
        self.went = threading.Event()
        self.deadline = float("inf")
        self.pool = ThreadPoolExecutor(fetch.AT_ONCE, thread_name_prefix="fetch")
        self.fetches: dict[int, Future[Fetched]] = {}

    def exec(self, index: int, *words: str, idle: float = 60.0) -> tuple[int, str]:
        """Run ``pod.py`` in a pod; a broken connection is tried once more."""
        argv = manifest.command(self.order.profile, *words)
        where = (self.names.namespace, self.names.pod(index), manifest.CONTAINER)
        try:
            return self.api.run(*where, argv, idle)
        except ApiError as error:
            if not error.transient or self.api.hurry.is_set():
                raise
            time.sleep(0.2)
            return self.api.run(*where, argv, idle)

    def begin(self, index: int) -> None:
        """A node is stopping: wait inside its pod for its end, and fetch its files at once."""
        with self.lock:
            if index not in self.fetches:
                self.fetches[index] = self.pool.submit(self._one, index)

    def _one(self, index: int) -> Fetched:
        began = time.monotonic()
        stop = BUDGETS["stop"].seconds + BUDGETS["collect"].seconds

        def deadline() -> float:
            return min(began + FETCH_SECONDS, self.deadline)

        with self.lock:
            dead = self.triage.pods[index].death is not None
        # A container that died may come back to hold.
        end = min(began + (REVIVAL if dead else stop), self._share(deadline()))

        def patience() -> float:
            return min(end, self.deadline) - time.monotonic()

        place, python = self.request.run_dir.path, self.order.profile.python
        pod, space = self.names.pod(index), self.names.namespace
        return fetch.Fetch(self.api, space, pod, index, place, python, deadline, patience).run()

    def fetch(self) -> list[Fetched]:
        """Every node's files, each as soon as its program has ended."""
        self.events.phase = "fetch"
        began = time.monotonic()
        with self.lock:
            gone = self.triage.gone()
            there = [i for i, seen in self.triage.pods.items() if seen.started and i not in gone]
        self.events.emit("note", text=f"fetching from {len(there)} pods")
        for index in there:
            self.begin(index)
        results = [self.fetches[index].result() for index in sorted(there)]
        self.pool.shutdown(wait=False)
        for result in results:
            self._name_lost(result)
        self._previous_logs()
        size = sum(result.bytes for result in results)
        self.events.emit(
            "note",
            text=f"fetched {sum(r.files for r in results)} files, {size:,} bytes "
            f"in {time.monotonic() - began:.1f} s",
        )
        return results

    def _name_lost(self, result: Fetched) -> None:
        """Every file that did not come: some in the log, all in a file, before they are deleted."""
        lost = result.problems
        for problem in lost[:5]:
            text = f"node {result.node} was not fetched whole: {problem}"
            self.events.emit("warning", text=text)
        if len(lost) > 5:
            path = self.request.run_dir.node(result.node).make().path / "not-fetched.log"
            write_text(path, "".join(f"{problem}\n" for problem in lost))
            text = f"node {result.node}: {len(lost)} files were not fetched; {path} names all"
            self.events.emit("warning", text=text)

    def _share(self, deadline: float) -> float:
        """Two thirds of what is left may go into waiting, the rest is for the transfer."""
        now = time.monotonic()
        return now + max(deadline - now, 0.0) * 2 / 3

    def _previous_logs(self) -> None:
        """What the former lives of restarted containers said."""
        with self.lock:
            gone = self.triage.gone()
            dead = [i for i, seen in self.triage.pods.items() if seen.death and i not in gone]
        for index in dead:
            place = self.request.run_dir.node(index).make().path
            where = (self.names.namespace, self.names.pod(index), manifest.CONTAINER)
            previous(self.api, *where, place / "pod-previous.log")

    def remove(self) -> None:
        """Delete everything and look that it is gone, or say how to."""
        self.events.phase = "delete"
        base, space = self.names.base, self.names.namespace
        how = f"kubectl delete -n {space} lws/{base} --cascade=foreground"
        if self.request.wishes.keep:
            self.request.say(
                f"kept {base}; look inside: kubectl exec -n {space} -it {base}-0 -- sh; "
                f"delete: {how}"
            )
            return
        began = time.monotonic()
        # Only now may a wait be cut: deletion is the last that must happen.
        self.api.hurry.clear()
        seconds = self.order.profile.grace + 60.0
        rest = cleanup.remove(
            self.api,
            self.names,
            self.request.run,
            len(self.order.bundle.parts),
            seconds,
            lambda: self.request.interrupts > 3,
            went=self.went,
        )
        if rest:
            self.events.emit(
                "warning",
                text=f"not everything is gone: {'; '.join(rest[:10])}. "
                f"`nox -s janitor -- --older-than 1m` finishes it, or try `{how}`",
            )
            return
        text = f"deleted; nothing of {base} is left ({time.monotonic() - began:.1f} s)"
        self.events.emit("note", text=text)


def without_record(place: Path, index: int, done: dict[str, Any], began: float) -> Cause:
    code = int(done["exit_code"])
    lines: list[str] = []
    with contextlib.suppress(OSError):
        log = place / "pod.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if not line.startswith(("{", "multinode: "))]
    errors = [line for line in told if line.startswith("error:")]
    memory = str(done.get("memory") or "")
    how = f"{done['how']} and left no record"
    happened = read_events(place / "events.jsonl")
    cause = contract.lost(
        index,
        errors[-1].removeprefix("error: ") if errors else f"{how}: {memory}" if memory else how,
        began,
        log="pod.log",
        at=float(done.get("at") or 0),
        phase=(happened[-1].phase if happened else "") or "join",
        exit_code=None if done.get("signal") else code,
        signal=str(done.get("signal") or ""),
        evidence=tuple(told[-10:]),
        hint=MEMORY if memory else f"Look at node-{index}/pod.log.",
    )
    kind = "config" if code == Exit.USAGE else "lost" if cause.signal else "exit"
    return replace(cause, kind=kind, verdict=_BY_CODE.get(code, "infra"))
