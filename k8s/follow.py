"""A run that was applied by hand, from its leader's first line to its verdict.

Enters: the name of a LeaderWorkerSet. Leaves: the leader's log on standard output, the verdict's
exit code. Touches the API: reads, and one exec at the end; nothing is changed.

    python -m k8s.follow --name NAME [--namespace NS]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

from k8s import manifest
from k8s.api import client
from k8s.api.client import Api, ApiError, Json, path
from k8s.api.follow import Follower
from k8s.api.watch import Watch
from k8s.triage import Finding, Triage
from steps.core import door
from steps.core.case.numbers import loads
from steps.core.errors import InfraError, UsageError
from steps.core.node.alone import printer
from steps.core.plan.plan import LEADER
from steps.core.plan.profile import BUDGETS
from steps.core.record.events import Event

TICK, SAY_EVERY, OUTAGE = 0.5, 30.0, 300.0
#: How long a leader gets to end after another node was lost: it knows best why.
LEADER_ENDS = 120.0
_READ = f"print(open('{manifest.ROOM}/work/done.json').read())"


class Follow:
    """Following one run."""

    def __init__(self, api: Api, names: manifest.Names, size: int, log: Path) -> None:
        self.api, self.names = api, names
        self.wake, self.lock = threading.Event(), threading.Lock()
        self.triage = Triage(names, size, BUDGETS, time.monotonic())
        place = names.namespace
        selector = f"{manifest.LWS_NAME_LABEL}={names.base}"
        self.watches = [
            Watch(api, path(place, "events"), self._event, from_now=True),
            Watch(api, path(place, "pods"), self._pod, selector),
        ]
        pod, show = names.pod(LEADER), printer()

        def line(text: str) -> None:
            event = Event.from_json(text) if text[:1] == "{" else None
            print(text, flush=True) if event is None else show(event)

        self.follower = Follower(api, place, pod, manifest.CONTAINER, log, line)
        self.following = False

    def _pod(self, kind: str, pod: Json) -> None:
        with self.lock:
            self.triage.pod(kind, pod, time.monotonic())
        self.wake.set()

    def _event(self, kind: str, event: Json) -> None:
        name = str((event.get("involvedObject") or {}).get("name", ""))
        if kind != "DELETED" and name.startswith(self.names.base):
            with self.lock:
                self.triage.event(event, time.monotonic())

    def run(self) -> int:
        """Until the leader has ended.

        Raises:
            InfraError: it never will.
        """
        for watch in self.watches:
            watch.start()
        try:
            self._until_the_end()
        finally:
            for watch in self.watches:
                watch.close()
            if self.following:
                self.follower.close(3.0)
        return self._code()

    def _until_the_end(self) -> None:
        said, text, lost = 0.0, "", 0.0
        while True:
            self.wake.wait(TICK)
            self.wake.clear()
            now = time.monotonic()
            with self.lock:
                finding, missing = self.triage.finding(now), self.triage.waiting_for()
                leader = self.triage.pods[LEADER]
                started, ended = leader.started, leader.ready
            if started and not self.following:
                self.following = True
                self.follower.start()
            if ended:
                return
            if finding is not None:
                lost = lost or now
                if self._over(finding, now - lost):
                    raise InfraError(finding.reason, finding.hint)
            for watch in self.watches:
                if watch.silent_since and now - watch.silent_since > OUTAGE:
                    raise InfraError(f"the API server does not answer: {watch.trouble}")
            if missing and (missing != text or now - said > SAY_EVERY):
                said, text = now, missing
                print(f"waiting for {missing}", flush=True)

    def _over(self, finding: Finding, seconds: float) -> bool:
        """Whether the leader has nothing to say of it: it died, or waits for what never comes."""
        with self.lock:
            dead = self.triage.pods[LEADER].death is not None
        return dead or not finding.started or seconds > LEADER_ENDS

    def _code(self) -> int:
        """How the leader's program ended."""
        pod, argv = self.names.pod(LEADER), ("-I", "-S", "-c", _READ)
        python = manifest.python_of(self.api.get(path(self.names.namespace, "pods", pod)))
        where = (self.names.namespace, pod, manifest.CONTAINER)
        code, text = self.api.run(*where, [python, *argv])
        done = loads(text) if code == 0 else {"how": text.strip()[-200:]}
        if done.get("exit_code") is None:
            raise InfraError(f"the leader left no verdict: {done.get('how')}")
        return int(done["exit_code"])


def by_hand(name: str, namespace: str) -> int:
    """Follow a run to its end; the verdict's exit code.

    Raises:
        UsageError: there is no such run.
        InfraError: the API refuses, or the run cannot end.
    """
    api = client.connect()
    names = manifest.Names(name, namespace or api.namespace)
    try:
        found = api.get(path(names.namespace, "leaderworkersets", name))
    except ApiError as error:
        if error.code != 404:
            raise InfraError(f"{name} cannot be followed: {error}") from None
        raise UsageError(
            f"--name {name}: there is no such LeaderWorkerSet in the namespace {names.namespace}",
            "`kubectl get lws -A` shows what there is; --namespace chooses another.",
        ) from None
    size = int(found["spec"]["leaderWorkerTemplate"]["size"])
    try:
        with tempfile.TemporaryDirectory(prefix="multinode-") as kept:
            return Follow(api, names, size, Path(kept) / "pod.log").run()
    except ApiError as error:
        raise InfraError(f"{name} cannot be followed: {error}") from None
    except KeyboardInterrupt:
        print("following ends here; the run goes on", flush=True)
        raise
    finally:
        print(
            f"its files: invoke fetch --on k8s --namespace {names.namespace} --name {name}\n"
            f"its end:   kubectl delete -n {names.namespace} lws/{name} --cascade=foreground",
            flush=True,
        )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="the LeaderWorkerSet")
    parser.add_argument("--namespace", default="", help="default: the kubeconfig's")


main = door.Verb("follow", __doc__, _options, lambda given: by_hand(given.name, given.namespace))


if __name__ == "__main__":
    sys.exit(main())
