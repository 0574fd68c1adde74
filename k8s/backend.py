"""k8s: a case as a LeaderWorkerSet, from apply to verdict to nothing left.

Enters: a request. Leaves: every node's files in the run directory, and causes
that only the cluster saw. Touches the API: creates, watches, fetches, deletes
what carries this run's label.

    preflight -> apply -> wait with triage, follow logs -> (first trouble or end)
    -> tell the nodes -> fetch -> delete -> look that nothing is left
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from k8s import bundle, cleanup, fetch, manifest, preflight, render
from k8s.api import client
from k8s.api.client import Api, ApiError, Json, path
from k8s.api.follow import LAST_WORDS, Follower
from k8s.api.watch import Watch
from k8s.fetch import Fetched
from k8s.harvest import Harvest, without_record
from k8s.manifest import Names, Order
from k8s.triage import Finding, Triage
from steps.core.case.case import Case
from steps.core.errors import InfraError
from steps.core.node import contract
from steps.core.node.wishes import Wishes
from steps.core.plan.budgets import BUDGETS
from steps.core.plan.plan import LEADER
from steps.core.plan.profile import Profile, find_profile, load_profile, masked
from steps.core.record import cleaning
from steps.core.record.events import Event, EventLog
from steps.core.record.records import Cause
from steps.core.record.rundir import RunDir, write_json, write_text
from steps.core.redaction import here

#: Seconds without any answer of the API after which the run is given up.
OUTAGE = 300.0
#: After a job is cancelled a runner has five minutes; collection must leave time for deletion.
CANCELLED, CANCELLED_AGAIN = 200.0, 20.0
#: How long nodes get to end after the first of them ended, beyond their own budgets.
SLACK = 30.0
#: Phases of a node in which its files are waited for.
ENDING = ("stop", "collect", "verdict")
SAY_EVERY = 10.0
TICK = 0.25


class Request(Protocol):
    """What of ``ci.backends.Request`` is needed here."""

    case: Case
    run: str
    run_dir: RunDir
    events: EventLog
    wishes: Wishes
    interrupted: threading.Event
    interrupts: int
    on_interrupt: list[Callable[[int], None]]
    ends: list[Callable[[], None]]

    def say(self, text: str) -> None:
        """A line of progress."""


def run(request: Request) -> tuple[Cause, ...]:
    """Carry the case out on the cluster of the kubeconfig.

    Raises:
        CaseError, UsageError: profile, case or options are wrong.
        InfraError: the cluster cannot run it; nothing was created.
    """
    profile = load_profile(find_profile(request.wishes.profile))
    _keep(request, profile)
    with ThreadPoolExecutor(1) as pool:  # compressed while the client is imported
        packed = pool.submit(bundle.make, request.wishes.rehearsal is not None)
        api = client.connect()
    namespace = profile.namespace or api.namespace
    order = render.order(
        *(request.case, profile, request.wishes, request.run, namespace),
        output="events",
        packed=packed.result(),
    )
    return Run(request, api, order).main()


def _keep(request: Request, profile: Profile) -> None:
    """The profile beside the case, for a replay; without what is secret in it."""
    copy = request.run_dir.profile(profile.name)
    copy.parent.mkdir(exist_ok=True)
    write_text(copy, masked(Path(profile.file)))


class Run:
    """One run on a cluster."""

    def __init__(self, request: Request, api: Api, order: Order) -> None:
        self.request = request
        self.api = api
        self.order = order
        self.names: Names = order.names
        self.size = order.case.num_nodes
        self.events = request.events
        self.redactor = here()
        self.redactor.learn([order.token])
        self.wake = threading.Event()
        self.lock = threading.RLock()
        self.triage = Triage(self.names, self.size, order.profile.budgets, time.monotonic())
        self.watches: list[Watch] = []
        self.followers: dict[int, Follower] = {}
        self.observed: list[Cause] = []
        self.images: dict[str, str] = {}
        self.began = time.time()
        self.harvest = Harvest(request, api, order, self.triage, self.lock)
        self._troubled = 0.0
        self._planned = False

    # The whole

    def main(self) -> tuple[Cause, ...]:
        """From preflight to nothing left, whatever happens."""
        self.request.on_interrupt.append(self._interrupt)
        self.api.troubles = self._trouble
        self._preflight()
        if self.request.interrupted.is_set():
            self._observe_interrupt()
            return tuple(self.observed)
        results: list[Fetched] = []
        try:
            with self._cluster_trouble():
                self._apply()
                self._wait()
                self._end()
            results = self.harvest.fetch()
        finally:
            patience = time.monotonic() + (0.0 if self.api.hurry.is_set() else 1.0)
            for follower in self.followers.values():
                follower.close(max(patience - time.monotonic(), 0.0))
            # Nothing of the report depends on it.
            removal = threading.Thread(target=self._remove, name="delete")
            removal.start()
            self.request.ends.append(removal.join)
        with contextlib.suppress(OSError):  # it explains, and decides nothing
            write_json(self.request.run_dir.images, self.images)
        self._judge(results)
        return tuple(sorted(self.observed, key=lambda cause: cause.at))

    def _remove(self) -> None:
        """Delete everything; the watch of the pods tells when they have gone."""
        self.harvest.remove()
        for watch in self.watches:
            watch.close()

    @contextlib.contextmanager
    def _cluster_trouble(self) -> Any:
        """The API's refusals become a cause; what was created is collected and deleted."""
        try:
            yield
        except ApiError as error:
            hint = "Run the command again, or look with kubectl; docs/kubernetes.md lists rights."
            self._observe(Finding(None, f"the API server refuses: {error}", hint))

    def _interrupt(self, count: int) -> None:
        """The first asks the nodes to stop, the second is in a hurry, the third deletes."""
        now = time.monotonic()
        limits = {1: CANCELLED, 2: CANCELLED_AGAIN}
        self.harvest.deadline = min(self.harvest.deadline, now + limits.get(count, 0.0))
        if count > 1:
            self.api.patience = min(self.api.patience, 10.0)
        if count > 2:
            self.api.cut()
        self.wake.set()

    def _trouble(self, text: str) -> None:
        """Say that the API has trouble, but not a hundred times."""
        now = time.monotonic()
        if now - self._troubled > SAY_EVERY:
            self._troubled = now
            self.events.emit("warning", text=text)

    # Before

    def _preflight(self) -> None:
        self.events.phase = "preflight"
        self.events.emit("phase", state="begin")
        began = time.monotonic()
        try:
            report = preflight.check(self.api, self.order)
        except ApiError as error:
            what = "does not know us" if error.code in (401, 403) else "does not answer"
            raise InfraError(
                f"the API server {self.api.configuration.host} {what}: {error}",
                "Check the kubeconfig with `kubectl get pods`.",
            ) from None
        for note in report.notes:
            self.events.emit("note", text=note)
        if report.problems:
            raise InfraError(
                "the cluster cannot run this: " + "; ".join(report.problems),
                report.hint,
            )
        self.events.emit("phase-end", seconds=round(time.monotonic() - began, 3), outcome="done")

    # Creating

    def _apply(self) -> None:
        """Create everything: what pods need first, then the LeaderWorkerSet, then the rest."""
        self.events.phase = "apply"
        names, space = self.names, self.names.namespace
        self.request.say(
            f"{names.base}: {self.size} pods in {space}, image {self.order.profile.image}, "
            f"harness {self.order.bundle.size >> 10} KiB"
        )
        found = manifest.documents(self.order)
        first = [d for d in found if d["kind"] in ("Secret", "ConfigMap")]
        with ThreadPoolExecutor(4) as pool:
            events = pool.submit(self._watch("events", self._event, from_now=True).start)
            for future in [pool.submit(self._create, document) for document in first]:
                future.result()
            events.result()
        with self.lock:
            self.triage = Triage(names, self.size, self.order.profile.budgets, time.monotonic())
            self.harvest.triage = self.triage
        lws = self._create(found[-1])
        self.events.emit("note", text=f"applied {names.base}")
        selector = f"{manifest.LWS_NAME_LABEL}={names.base}"
        self._watch("pods", self._pod, selector).start()
        owner = {
            "apiVersion": lws["apiVersion"],
            "kind": lws["kind"],
            "name": names.base,
            "uid": lws["metadata"]["uid"],
        }
        service = next(document for document in found if document["kind"] == "Service")
        service["metadata"]["ownerReferences"] = [owner]
        with ThreadPoolExecutor(4) as pool:
            made: list[Future[Any]] = [pool.submit(self._create, service)]
            made += [pool.submit(self._own, document, owner) for document in first]
            for future in made:
                future.result()

    def _watch(
        self,
        plural: str,
        change: Callable[[str, Json], None],
        selector: str = "",
        from_now: bool = False,
    ) -> Watch:
        target = path(self.names.namespace, plural)
        watch = Watch(self.api, target, change, selector, from_now)
        self.watches.append(watch)
        return watch

    def _create(self, document: Json) -> Json:
        return self.api.apply(_target(document), document)

    def _own(self, document: Json, owner: Json) -> None:
        """Make the LeaderWorkerSet the owner, so that whoever deletes it deletes all."""
        self.api.merge(_target(document), {"metadata": {"ownerReferences": [owner]}})

    # Watching

    def _pod(self, kind: str, pod: Json) -> None:
        with self.lock:
            self.triage.pod(kind, pod, time.monotonic())
            index = self.names.index(pod["metadata"]["name"])
            if index is not None and (digest := manifest.digest_of(pod)):
                self.images[str(index)] = digest
            known = index in self.triage.pods
            started = known and self.triage.pods[index or 0].started
            gone = index in self.triage.gone()
        if kind == "DELETED":
            self.harvest.went.set()
        if gone and index in self.followers:
            self.followers[index].no_more_lives()
        if started and not gone and index is not None and index not in self.followers:
            self._follow(index)
        self.wake.set()

    def _event(self, kind: str, event: Json) -> None:
        about = event.get("involvedObject") or {}
        if kind == "DELETED" or not str(about.get("name", "")).startswith(self.names.base):
            return
        with self.lock:
            self.triage.event(event, time.monotonic())
        self.wake.set()

    def _follow(self, index: int) -> None:
        place = self.request.run_dir.node(index).make()
        listeners = self.events.listeners

        def line(text: str) -> None:
            event = Event.from_json(text) if text[:1] == "{" else None
            if event is None:
                if text.startswith(LAST_WORDS):
                    with self.lock:
                        self.triage.pods[index].ended = True
                    self.wake.set()
                if text.startswith("multinode: ") or not text.strip():
                    return
                clean = {"text": self.redactor.text(text)}
                event = Event(time.time(), self.request.run, index, "log", "note", clean)
            if index == LEADER and event.phase not in ("", "join", "log"):
                self._planned = True
            if event.phase in ENDING:
                self.harvest.begin(index)
            for listener in listeners:
                listener(event)

        follower = Follower(
            self.api,
            self.names.namespace,
            self.names.pod(index),
            manifest.CONTAINER,
            place.path / "pod.log",
            line,
        )
        self.followers[index] = follower.start()

    # Waiting

    def _wait(self) -> None:
        """Until every node has ended, one is lost, or somebody interrupts."""
        self.events.phase = "start"
        said, text, running = time.monotonic(), "", 0.0
        first_end = 0.0
        while True:
            self.wake.wait(TICK)
            self.wake.clear()
            now = time.monotonic()
            with self.lock:
                finding = self.triage.finding(now)
                missing = self.triage.waiting_for()
                finished = self.triage.finished()
            if finding is not None:
                self._observe(finding)
                return
            if len(finished) == self.size:
                return
            if self.request.interrupted.is_set():
                self._observe_interrupt()
                return
            if finished and not first_end:
                first_end = now
            limit = BUDGETS["stop"].seconds + BUDGETS["collect"].seconds + SLACK
            if first_end and now - first_end > limit:
                late = [i for i in range(self.size) if i not in finished]
                reason = f"did not end within {limit:g} s after node {finished[0]} had ended"
                self._observe(Finding(late[0], f"pod {self.names.pod(late[0])} {reason}"))
                return
            if self._silent(now):
                return
            if not missing and not running:
                running = now
                self.events.emit("note", text="every node's harness runs")
            apart = self._apart(now - running) if running and not finished else None
            if apart is not None:
                self._observe(apart)
                return
            if missing and (missing != text or now - said > SAY_EVERY):
                if missing != text and now - said < 1.0:
                    continue
                said, text = now, missing
                self.events.emit("waiting", missing=missing)

    def _apart(self, seconds: float) -> Finding | None:
        """Nodes that have all run for ``seconds`` and not found one another.

        The nodes themselves wait longer, as long as any pod may take to start.
        """
        limit = BUDGETS["join"].seconds
        # Names resolve late after an outage of the API server.
        if self._planned or seconds <= limit or self.api.late(cleanup.AFTERMATH):
            return None
        return Finding(
            None,
            f"the nodes have not found one another within {limit:g} s, though every pod runs",
            "Look at node-*/pod.log. Does a NetworkPolicy keep the pods of "
            f"{self.names.namespace} apart, or does DNS not know {self.names.address(0)}?",
            started=True,
        )

    def _silent(self, now: float) -> bool:
        """Whether the API has been silent for too long."""
        for watch in self.watches:
            trouble, since = watch.trouble, watch.silent_since
            if not trouble:
                continue
            self._trouble(f"the API server does not answer: {trouble}; the pods go on")
            if since and now - since > OUTAGE:
                reason = f"the API server has not answered for {OUTAGE:g} s: {trouble}"
                self._observe(Finding(None, reason, "The pods may still be there: `janitor`."))
                return True
        return False

    def _observe(self, finding: Finding) -> None:
        """A cause only we can see."""
        cause = contract.lost(
            finding.node,
            finding.reason,
            self.began,
            log="pod.log",
            process="pod",
            at=finding.at,
            phase="start" if not finding.started else "run",
            exit_code=finding.exit_code,
            signal=finding.signal,
            hint=finding.hint,
        )
        self.observed.append(cause)
        self.events.emit("cause", text=str(cause), verdict=cause.verdict)

    def _observe_interrupt(self) -> None:
        self.observed.append(contract.interrupted(self.began, time.time()))
        self.events.emit("stopping", text="interrupted; collecting, then deleting")

    # Ending

    def _end(self) -> None:
        """Tell those that still work that the run is over."""
        if not self.observed:
            return
        self.events.phase = "stop"
        cause = self.observed[0]
        with self.lock:
            alive = [i for i in self.triage.alive() if i != cause.node]
        if cause.kind == "interrupt" or cause.node is None:
            word = contract.STOP
        else:
            word = str(contract.Lost.of(cause))
        targets = [LEADER] if LEADER in alive else alive

        def tell(index: int) -> None:
            try:
                self.harvest.exec(index, "tell", *word.split(" "))
            except ApiError as error:
                self.events.emit("warning", text=f"node {index} could not be told: {error}")

        with ThreadPoolExecutor(fetch.AT_ONCE) as pool:
            list(pool.map(tell, targets))

    def _judge(self, results: Sequence[Fetched]) -> None:
        """Nodes that left no record say at least how they ended; logs lose what is secret."""
        for result in results:
            place = self.request.run_dir.node(result.node)
            for name in ("pod.log", "pod-previous.log"):
                with contextlib.suppress(OSError):
                    cleaning.clean(place.path / name, self.redactor)
            done = result.done
            if place.record.exists() or not done or done.get("exit_code") is None:
                continue
            if any(cause.node == result.node for cause in self.observed):
                continue
            self.observed.append(without_record(place.path, result.node, done, self.began))
        kinds = {cause.kind for cause in self.observed}
        if "interrupt" in kinds:
            self.observed = [replace(c, consequence=c.kind != "interrupt") for c in self.observed]


def _target(document: Json) -> str:
    plurals = {
        "Secret": "secrets",
        "ConfigMap": "configmaps",
        "Service": "services",
        "LeaderWorkerSet": "leaderworkersets",
    }
    meta = document["metadata"]
    return path(meta["namespace"], plurals[document["kind"]], meta["name"])
