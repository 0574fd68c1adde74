"""Triage: what the state of pods and their events mean for a run.

Enters: pods and events as the API shows them, the time. Leaves: findings (a
node is lost, a pod will never start), and what is being waited for. Touches
nothing.

The rules come from recordings of a real cluster (tests/kube/recordings): a
container that exits is started again at once, so that an exit often shows only
as a restart count; images, mounts and quotas that cannot work show as waiting
reasons and events while the phase stays Pending.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from k8s.api.client import Json
from k8s.manifest import CONTAINER, Names

#: A container that waits for one of these does not start by itself.
DOOMED = {
    "ErrImagePull": "Check the image's name, the registry and image_pull_secrets in the profile.",
    "ImagePullBackOff": "Check the image's name, the registry and image_pull_secrets in the "
    "profile.",
    "ErrImageNeverPull": "image_pull_policy is Never, and the node does not have the image.",
    "InvalidImageName": "Correct `image` in the profile.",
    "CreateContainerConfigError": "Check secret_env and the mounts in the profile.",
    "CreateContainerError": "Check `python`, the mounts and the image in the profile.",
    "RunContainerError": "Check `python` in the profile: the image must have it.",
    "CrashLoopBackOff": "Look at the pod's previous log.",
}
MEMORY = "Raise `memory` in the profile, or make the engine need less."
#: Seconds for which a trouble that rarely passes by itself is given a chance.
MOUNT_PATIENCE, CLAIM_PATIENCE, CREATE_PATIENCE, PULL_PATIENCE = 5.0, 30.0, 30.0, 300.0
#: Words of a registry or a kubelet that is busy, after which the kubelet's next try may succeed.
_BUSY = re.compile(
    r"QPS exceeded|connection reset|unexpected EOF|TLS handshake timeout|too ?many ?requests"
    r"|\b50[0234] |timed out waiting for the condition|context deadline exceeded",
    re.IGNORECASE,
)
#: What a runtime or a shell says of a program that is not there or cannot be run.
_NO_PROGRAM = (126, 127, 128)
_IMAGE = ("ErrImagePull", "ImagePullBackOff")
_MOUNTS = ("FailedMount", "FailedAttachVolume")
_NEVER_CREATED = re.compile(
    r"exceeded quota|is forbidden|is invalid|Invalid value|Unsupported value"
)
_ABSENT = re.compile(r"not found|references non-existent")


@dataclass(frozen=True)
class Finding:
    """Why the run cannot go on.

    Attributes:
        node: the node concerned; None when it is the whole group.
        at: when it happened by the cluster's clock, seconds since the epoch.
        started: whether the node had begun to work.
        gone: its files went with it.
    """

    node: int | None
    reason: str
    hint: str = ""
    at: float = 0.0
    started: bool = False
    exit_code: int | None = None
    signal: str = ""
    gone: bool = False


@dataclass(frozen=True)
class Trouble:
    """What may pass by itself, and since when it has not."""

    since: float
    text: str


def _again(before: Trouble | None, text: str, now: float) -> Trouble:
    return Trouble(before.since if before else now, text)


@dataclass
class Seen:
    """What is known of one node's pod; ``ended``: its log said that its program has."""

    uid: str = ""
    phase: str = ""
    ready: bool = False
    ended: bool = False
    running: bool = False
    started: bool = False
    scheduled: bool = False
    unscheduled: str = ""
    waiting: str = ""
    pulling: str = ""
    since: float = 0.0
    death: Finding | None = None
    troubles: dict[str, Trouble] = field(default_factory=dict)

    def trouble(self, kind: str, text: str, now: float) -> None:
        """A trouble that may pass: since when it is there, and what was said last."""
        self.troubles[kind] = _again(self.troubles.get(kind), text, now)


class Triage:
    """The judgement of one run's pods.

    Args:
        size: how many nodes there are.
        budgets: seconds for ``scheduling``, ``pulling``, ``starting``.
        now: when the LeaderWorkerSet was applied, by the clock of the later ``now``.
    """

    def __init__(self, names: Names, size: int, budgets: Mapping[str, float], now: float) -> None:
        self.names = names
        self.budgets = budgets
        self.pods: dict[int, Seen] = {i: Seen(since=now) for i in range(size)}
        self._group: Finding | None = None
        self._uncreated: Trouble | None = None

    # What happens

    def pod(self, kind: str, pod: Json, now: float) -> None:
        """A pod was added, modified or deleted."""
        index = self.names.index(pod["metadata"]["name"])
        seen = self.pods.get(index) if index is not None else None
        if seen is None or index is None:
            return
        meta, status = pod["metadata"], pod.get("status") or {}
        name = meta["name"]
        if seen.uid and meta["uid"] != seen.uid:
            self._die(index, f"pod {name} was replaced by another of its name", gone=True)
            return
        seen.uid = meta["uid"]
        if kind == "DELETED" or meta.get("deletionTimestamp"):
            at = epoch(meta.get("deletionTimestamp")) - int(
                meta.get("deletionGracePeriodSeconds") or 0
            )
            hint = "Somebody or something outside this run deleted it: a drain, a preemption?"
            self._die(index, f"pod {name} was deleted", hint, at=max(at, 0.0), gone=True)
            return
        before = (seen.scheduled, seen.running, seen.waiting)
        self._conditions(seen, status)
        seen.phase = status.get("phase", "")
        if seen.phase == "Failed":
            text = f"{status.get('reason', '')}: {status.get('message', '')}".strip(": ")
            self._die(index, f"pod {name} failed: {text or 'no reason given'}")
        for container in status.get("containerStatuses") or []:
            # Others were put beside ours by somebody's admission webhook.
            if container["name"] == CONTAINER:
                self._container(index, seen, pod, container, now)
        if (seen.scheduled, seen.running, seen.waiting) != before:
            seen.since = now

    def _conditions(self, seen: Seen, status: Json) -> None:
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled":
                seen.scheduled = condition["status"] == "True"
                seen.unscheduled = "" if seen.scheduled else condition.get("message", "")

    def _container(self, index: int, seen: Seen, pod: Json, entry: Json, now: float) -> None:
        name = pod["metadata"]["name"]
        state, last = entry.get("state") or {}, entry.get("lastState") or {}
        # Ours alone: a container that admission put beside it is never ready once it has ended.
        seen.ready = bool(entry.get("ready"))
        seen.running = "running" in state
        seen.started = seen.started or seen.running
        waiting = state.get("waiting") or {}
        seen.waiting = waiting.get("reason", "")
        ended = state.get("terminated") or last.get("terminated")
        if ended:
            self._ended(index, name, pod, entry, ended)
        elif entry.get("restartCount"):
            self._die(index, f"the container of pod {name} was started again")
        elif seen.waiting in DOOMED:
            words = " ".join((waiting.get("message") or "").split())
            text = f"{seen.waiting}{': ' if words else ''}{words}"
            kind = _IMAGE[0] if seen.waiting in _IMAGE else seen.waiting
            if seen.waiting == _IMAGE[1] and kind in seen.troubles:
                return  # older kubelets' back-off does not repeat why
            if _BUSY.search(words):
                seen.trouble(kind, text, now)
            else:
                self._die(index, f"pod {name} cannot start: {text}", DOOMED[seen.waiting])

    def _ended(self, index: int, name: str, pod: Json, entry: Json, ended: Json) -> None:
        code, why = ended.get("exitCode"), ended.get("reason", "")
        text = f"the container of pod {name} ended with exit code {code}"
        hint = f"Look at node-{index}/pod.log and node-{index}/pod-previous.log."
        signal = ""
        if why == "OOMKilled":
            limit = _memory_limit(pod, entry["name"])
            text = f"the container of pod {name} was killed: OOMKilled, over its memory limit"
            text += f" of {limit}" if limit else ""
            hint = MEMORY
            signal = "SIGKILL"
        elif why not in ("Error", "Completed", ""):
            text += f" ({why})"
        if code in _NO_PROGRAM and not self.pods[index].started:
            hint = DOOMED["RunContainerError"]
        if ended.get("message"):
            text += f": {' '.join(ended['message'].split())[:500]}"
        at = epoch(ended.get("finishedAt"))
        self._die(index, text, hint, at=at, code=code if not signal else None, signal=signal)

    def _die(
        self,
        index: int,
        reason: str,
        hint: str = "",
        at: float = 0.0,
        code: int | None = None,
        signal: str = "",
        gone: bool = False,
    ) -> None:
        """The first death of a node counts."""
        seen = self.pods[index]
        if seen.death is None:
            seen.death = Finding(index, reason, hint, at, seen.started, code, signal, gone)

    def event(self, event: Json, now: float) -> None:
        """An event about one of the run's objects; others are passed over."""
        about = event.get("involvedObject") or {}
        name, kind = about.get("name", ""), about.get("kind", "")
        reason, text = event.get("reason", ""), " ".join((event.get("message") or "").split())
        if kind in ("StatefulSet", "LeaderWorkerSet"):
            if name in (self.names.base, f"{self.names.base}-0"):
                self._group_event(reason, text, now)
            return
        index = self.names.index(name) if kind == "Pod" else None
        seen = self.pods.get(index) if index is not None else None
        if seen is None or (seen.uid and about.get("uid") not in (None, "", seen.uid)):
            return
        if reason == "Pulling":
            # Volumes come before the image; each stage has its own time.
            for mount in _MOUNTS:
                seen.troubles.pop(mount, None)
            seen.pulling, seen.since = text, now
        elif reason in ("Pulled", "Created"):
            seen.troubles.clear()
            seen.pulling, seen.since = "", now
        elif reason in (*_MOUNTS, "FailedScheduling"):
            seen.trouble(reason, text, now)
        elif reason in ("Scheduled", "Started"):
            seen.troubles.clear()

    def _group_event(self, reason: str, text: str, now: float) -> None:
        if reason == "RecreateGroup":
            self._group = self._group or Finding(
                None, f"the group was recreated: {text}", "Its restartPolicy must be None."
            )
        elif reason == "FailedCreate":
            self._uncreated = _again(self._uncreated, text, now)
            if _NEVER_CREATED.search(text):
                hint = "Ask for less, or for a larger quota." if "quota" in text else ""
                self._group = self._group or Finding(None, text, hint)
        elif reason == "SuccessfulCreate":
            self._uncreated = None

    # What it means

    def finding(self, now: float) -> Finding | None:
        """Why the run cannot go on, if it cannot; the earliest death first."""
        deaths = [seen.death for seen in self.pods.values() if seen.death]
        if deaths:
            return min(deaths, key=lambda found: (not found.started, found.at or now))
        if self._group is not None:
            return self._group
        if self._uncreated and now - self._uncreated.since > CREATE_PATIENCE:
            return Finding(None, self._uncreated.text)
        for index, seen in self.pods.items():
            found = self._hopeless(index, seen, now) or self._overdue(index, seen, now)
            if found is not None:
                return found
        return None

    def _hopeless(self, index: int, seen: Seen, now: float) -> Finding | None:
        """Troubles that rarely pass by themselves."""
        if seen.started:
            return None
        pod = self.names.pod(index)
        for kind, trouble in seen.troubles.items():
            if now - trouble.since <= self._patience(kind, trouble.text):
                continue
            what, hint = f"{kind}: {trouble.text}", "Check the mounts in the profile."
            if kind in DOOMED:
                what, hint = trouble.text, DOOMED[kind]
            return Finding(index, f"pod {pod} cannot start: {what}", hint)
        return None

    def _patience(self, kind: str, text: str) -> float:
        """Seconds that a trouble is given to pass."""
        if kind == "FailedScheduling":
            if "persistentvolumeclaim" in text and "not found" in text:
                return MOUNT_PATIENCE
            bound = "unbound" not in text or "PersistentVolumeClaim" not in text
            return float("inf") if bound else CLAIM_PATIENCE
        if kind in DOOMED:
            return PULL_PATIENCE if kind in _IMAGE else CREATE_PATIENCE
        return MOUNT_PATIENCE if _ABSENT.search(text) else self.budgets["starting"]

    def _overdue(self, index: int, seen: Seen, now: float) -> Finding | None:
        """A stage's budget that is used up."""
        if seen.started:
            return None
        stage, what = self._stage(index, seen)
        if now - seen.since <= self.budgets[stage]:
            return None
        hint = f"budgets.{stage} in the profile says how long to wait."
        return Finding(index, f"{what}: {stage} took over {self.budgets[stage]:g} s", hint)

    def _stage(self, index: int, seen: Seen) -> tuple[str, str]:
        pod = self.names.pod(index)
        if not seen.uid:
            why = f": {self._uncreated.text}" if self._uncreated else ""
            return "starting", f"pod {pod} was not created{why}"
        if not seen.scheduled:
            failed = seen.troubles.get("FailedScheduling")
            why = (failed.text if failed else "") or seen.unscheduled or "no reason given yet"
            return "scheduling", f"pod {pod} is not scheduled: {why}"
        if seen.pulling:
            busy = "".join(f"; {text}" for text in _texts(seen))
            return "pulling", f"pod {pod}: {seen.pulling}{busy}"
        words = "; ".join(_texts(seen))
        return "starting", f"pod {pod}: {words or seen.waiting or 'container is being created'}"

    def waiting_for(self) -> str:
        """What a run that has not begun is waiting for; empty when every node works."""
        waits: dict[str, list[str]] = {}
        for index, seen in self.pods.items():
            if not seen.started:
                what = self._stage(index, seen)[1].partition(": ")
                text = what[2] or what[0].removeprefix(f"pod {self.names.pod(index)} ")
                waits.setdefault(text, []).append(str(index))
        return "; ".join(f"node {', '.join(nodes)}: {text}" for text, nodes in waits.items())

    def finished(self) -> list[int]:
        """Nodes whose program has ended."""
        return [index for index, seen in self.pods.items() if seen.ready or seen.ended]

    def gone(self) -> list[int]:
        """Nodes whose pod was deleted or replaced."""
        return [i for i, seen in self.pods.items() if seen.death and seen.death.gone]

    def alive(self) -> list[int]:
        """Nodes whose container runs."""
        gone = self.gone()
        return [i for i, seen in self.pods.items() if seen.running and i not in gone]


def _texts(seen: Seen) -> list[str]:
    return [trouble.text for trouble in seen.troubles.values()]


def epoch(text: Any) -> float:
    """Seconds since the epoch of a Kubernetes time; 0 when there is none."""
    try:
        return float(calendar.timegm(time.strptime(str(text)[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0


def _memory_limit(pod: Json, container: str) -> str:
    for entry in pod.get("spec", {}).get("containers", []):
        if entry["name"] == container:
            return str(((entry.get("resources") or {}).get("limits") or {}).get("memory", ""))
    return ""
