"""Event objects: made, or counted up when the same thing happens again. Touches the store only."""

from __future__ import annotations

import secrets
import time

from . import kinds
from .store import Object, Store, now, now_micro

OLD_STYLE = ("kubelet", "statefulset-controller")


def emit(
    store: Store,
    about: Object,
    type_: str,
    reason: str,
    message: str,
    component: str,
    action: str = "",
    field_path: str = "",
    again: bool = True,
    node: str = "node-a",
) -> None:
    """Record an event about an object.

    Kubelet and StatefulSet controller count repetitions in ``count``; scheduler and LWS
    controller use the newer form (``eventTime``, ``series``), which has no count, no timestamps
    and an empty source: both as recorded. ``again=False`` makes a new object even for a
    repetition.
    """
    meta = about["metadata"]
    namespace = meta.get("namespace") or "default"
    if again:
        old = store.event_names.get((meta["uid"], reason, message, component, field_path))
        if old and store.change(kinds.EVENTS, namespace, old, _count_up):
            return
    involved = {
        "kind": about["kind"],
        "namespace": namespace,
        "name": meta["name"],
        "uid": meta["uid"],
        "apiVersion": about["apiVersion"],
        "resourceVersion": meta["resourceVersion"],
    }
    if field_path:
        involved["fieldPath"] = field_path
    body: Object = {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {
            "name": f"{meta['name']}.{time.time_ns() & 0xFFFFFFFF:08x}{secrets.token_hex(4)}",
            "namespace": namespace,
        },
        "involvedObject": involved,
        "reason": reason,
        "message": message,
    }
    if component in OLD_STYLE:
        source = {"component": component}
        if component == "kubelet":
            source["host"] = node
        body.update(
            source=source,
            firstTimestamp=now(),
            lastTimestamp=now(),
            count=1,
            type=type_,
            eventTime=None,
        )
    else:
        body.update(
            source={}, firstTimestamp=None, lastTimestamp=None, type=type_, eventTime=now_micro()
        )
        body["action"] = action
    body["reportingComponent"] = component
    instance = {"kubelet": node, "statefulset-controller": ""}
    body["reportingInstance"] = instance.get(component, f"{component}-{node}")
    made = store.create(kinds.EVENTS, body)
    store.event_names[(meta["uid"], reason, message, component, field_path)] = made["metadata"][
        "name"
    ]


def _count_up(event: Object) -> None:
    if event["reportingComponent"] in OLD_STYLE:
        event["count"] += 1
        event["lastTimestamp"] = now()
    else:
        series = event.get("series") or {"count": 1}
        event["series"] = {"count": series["count"] + 1, "lastObservedTime": now_micro()}
