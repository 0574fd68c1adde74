"""Deleting what a run made, and looking that it is gone.

Enters: a run's names, or everything that is labelled as ours. Leaves: what is
left. Touches the API: deletes only what carries the run's label, or has a name
that only this run gives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from k8s.api.client import Api, ApiError, Json, path
from k8s.manifest import LWS_NAME_LABEL, RUN_LABEL, Names
from k8s.triage import epoch

#: Looked at in this order; pods and StatefulSets are made by controllers.
KINDS = ("leaderworkersets", "pods", "statefulsets", "services", "configmaps")
#: How long pods that have nothing to stop, but do not go, are waited for.
STUCK = 15.0
#: After an outage of the API server kubelets, controllers and DNS need so long to catch up.
AFTERMATH = 180.0


def delete(api: Api, names: Names, parts: int) -> list[str]:
    """Ask for the deletion of everything; returns the names that could not be asked for."""
    space, base = names.namespace, names.base
    failed = []
    wanted = [("leaderworkersets", base, "Foreground"), ("services", names.service, "Background")]
    wanted += [("secrets", base, "Background"), ("configmaps", base, "Background")]
    wanted += [("configmaps", names.bundle(i), "Background") for i in range(parts)]
    for plural, name, propagation in wanted:
        try:
            api.delete(path(space, plural, name), propagation)
        except ApiError as error:
            failed.append(f"{plural}/{name}: {error}")
    return failed


def there(api: Api, names: Names, run: str) -> dict[str, Json]:
    """What of a run is still there: ``kind/name`` -> the object."""
    found = {}
    for plural in KINDS:
        made = plural in ("pods", "statefulsets")
        label = f"{LWS_NAME_LABEL}={names.base}" if made else f"{RUN_LABEL}={run}"
        for item in api.items(path(names.namespace, plural), {"labelSelector": label}):
            found[f"{plural}/{item['metadata']['name']}"] = item
    return found


def never_ran(pod: Json, now: float) -> bool:
    """Whether a pod is deleted, its grace is over, and it has no process that could still run.

    Such a pod waits for its image or its volumes: its kubelet lets go of it when that has ended.
    """
    deleted = epoch(pod["metadata"].get("deletionTimestamp"))
    rows = (pod.get("status") or {}).get("containerStatuses") or []
    ran = any(row.get("restartCount") or "waiting" not in (row.get("state") or {}) for row in rows)
    return bool(deleted) and deleted < now and not ran


def _why(api: Api, pod: Json, now: float) -> str:
    """What keeps a pod, in the cluster's last words about it."""
    meta = pod["metadata"]
    query = {"fieldSelector": f"involvedObject.kind=Pod,involvedObject.name={meta['name']}"}
    try:
        events = api.items(path(meta["namespace"], "events"), query)
    except ApiError:
        events = []
    events = [event for event in events if event.get("reason") != "Killing"]
    last = max(events, key=lambda event: event.get("lastTimestamp") or "", default={})
    what = "its container never started" if never_ran(pod, now) else "its node does not let it go"
    return ": ".join(filter(None, (what, " ".join((last.get("message") or "").split())[:300])))


def _force(api: Api, pods: Iterable[Json]) -> list[str]:
    """Take pods out of the API whose kubelets do not; what was refused, and what to type."""
    refused = []
    for pod in pods:
        space, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        try:
            api.delete(path(space, "pods", name), grace=0)
        except ApiError as error:
            todo = f"kubectl delete -n {space} pod/{name} --grace-period=0 --force"
            refused.append(f"pods/{name}: {error}; with the right to delete pods: {todo}")
    return refused


def remove(
    api: Api,
    names: Names,
    run: str,
    parts: int,
    seconds: float,
    over: Callable[[], bool] = lambda: False,
    force: bool = False,
    went: threading.Event | None = None,
) -> list[str]:
    """Delete, and look until all is gone; returns the names left after ``seconds``, and why.

    It waits longer where the API server was away a short while ago.

    Args:
        over: whether nobody wants to wait any more.
        force: pods that never ran and do not go are taken out of the API.
        went: set by whoever watches the pods when one is gone; else they are looked for more often.
    """
    deadline = time.monotonic() + seconds
    failed = delete(api, names, parts)
    told, delay, stuck = went or threading.Event(), 0.4 if went else 0.1, 0.0
    while True:
        if failed:
            failed = delete(api, names, parts)
        remaining: dict[str, Json] = {}
        unknown, refused = [], []
        try:
            remaining = there(api, names, run)
        except ApiError as error:
            unknown = [f"unknown: {error}"]
        if not (remaining or failed or unknown):
            return []
        now = time.time()
        pods = [item for name, item in remaining.items() if name.startswith("pods/")]
        idle = [pod for pod in pods if never_ran(pod, now)]
        if force:
            refused = _force(api, idle)
        stuck = (stuck or time.monotonic()) if pods and len(idle) == len(pods) else 0.0
        patience = AFTERMATH if api.late(AFTERMATH) else 0.0
        give_up = stuck and time.monotonic() - stuck > STUCK + patience
        if give_up or time.monotonic() > deadline + patience or over():
            reasons = {f"pods/{p['metadata']['name']}": f": {_why(api, p, now)}" for p in pods}
            left = [name + reasons.get(name, "") for name in remaining]
            return [*failed, *unknown, *left, *refused]
        # Once a pod is gone, what made it goes soon.
        delay = 0.1 if told.wait(delay) else min(delay * 1.5, 1.0)
        told.clear()
