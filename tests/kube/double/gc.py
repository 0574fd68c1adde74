"""Deleting, and the garbage collector: foreground, background, owner references.

Enters: delete requests and changes of the store. Leaves: changed and removed objects. Touches the
    store only.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

from . import kinds
from .kinds import Kind
from .store import Change, Object, Store, now
from .timing import Timing

FOREGROUND = "foregroundDeletion"


class Collector:
    """Carries deletions through, one hop a time, as the real one does."""

    def __init__(self, store: Store, timing: Timing) -> None:
        self.store, self.timing = store, timing
        self._kinds = {kind.qualified: kind for kind in kinds.ALL}
        self._tasks: set[asyncio.Task[None]] = set()
        store.listeners.append(self._changed)

    def delete(
        self, kind: Kind, obj: Object, policy: str = "Background", grace: int | None = None
    ) -> Object | None:
        """Begin to delete; the object as it is now, or None when it is gone already."""
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        if kind is kinds.PODS:
            return self._delete_pod(obj, policy, grace)
        if policy == "Foreground" or meta.get("finalizers"):

            def mark(o: Object) -> None:
                if "deletionTimestamp" not in o["metadata"]:
                    o["metadata"]["deletionTimestamp"] = now()
                    o["metadata"]["deletionGracePeriodSeconds"] = 0
                    if "generation" in o["metadata"]:
                        o["metadata"]["generation"] += 1
                if policy == "Foreground" and FOREGROUND not in (
                    o["metadata"].get("finalizers") or []
                ):
                    o["metadata"].setdefault("finalizers", []).append(FOREGROUND)

            changed = self.store.change(kind, namespace, name, mark)
            self._later(self._advance(kind, meta["uid"], namespace, name))
            return changed
        if policy == "Orphan":
            self._orphan(meta["uid"])
        self.store.remove(kind, namespace, name)
        return None

    def _delete_pod(self, pod: Object, policy: str, grace: int | None) -> Object | None:
        meta = pod["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        period = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if not pod["spec"].get("nodeName"):
            period = 0
        if "deletionTimestamp" in meta and grace is None:
            return pod

        def mark(o: Object) -> None:
            m = o["metadata"]
            end = datetime.now(timezone.utc) + timedelta(seconds=period)
            m["generation"] = m.get("generation", 1) + (1 if "deletionTimestamp" not in m else 0)
            m["deletionTimestamp"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
            m["deletionGracePeriodSeconds"] = period
            if policy == "Foreground" and FOREGROUND not in (m.get("finalizers") or []):
                m.setdefault("finalizers", []).append(FOREGROUND)

        changed = self.store.change(kinds.PODS, namespace, name, mark)
        assert changed is not None
        if policy == "Foreground":
            self._later(self._advance(kinds.PODS, meta["uid"], namespace, name))
        if period == 0:
            self.finish_pod(namespace, name, meta["uid"])
        return changed

    def finish_pod(self, namespace: str, name: str, uid: str) -> None:
        """The kubelet has let go of the pod (or never had it): gone, unless a finalizer holds
        it."""
        pod = self.store.get(kinds.PODS, namespace, name)
        if pod is None or pod["metadata"]["uid"] != uid:
            return

        def zero(o: Object) -> None:
            o["metadata"]["deletionGracePeriodSeconds"] = 0

        pod = self.store.change(kinds.PODS, namespace, name, zero)
        assert pod is not None
        if not pod["metadata"].get("finalizers"):
            self.store.remove(kinds.PODS, namespace, name)

    def dependents(self, uid: str) -> list[tuple[Kind, Object]]:
        found = []
        for qualified, rows in self.store.objects.items():
            for obj in rows.values():
                if any(o.get("uid") == uid for o in obj["metadata"].get("ownerReferences") or []):
                    found.append((self._kinds[qualified], obj))
        return found

    async def _advance(self, kind: Kind, uid: str, namespace: str, name: str) -> None:
        """One hop of a foreground deletion: delete the dependents, or the owner once none is
        left."""
        await asyncio.sleep(self.timing.collect)
        owner = self.store.get(kind, namespace, name)
        if (
            owner is None
            or owner["metadata"]["uid"] != uid
            or FOREGROUND not in owner["metadata"].get("finalizers", [])
        ):
            return
        waiting = False
        for dependent_kind, dependent in self.dependents(uid):
            waiting = True
            if "deletionTimestamp" not in dependent["metadata"]:
                # a StatefulSet always has dependents: its ControllerRevisions, which are not
                #     modelled
                deep = dependent_kind is kinds.STATEFULSETS or bool(
                    self.dependents(dependent["metadata"]["uid"])
                )
                self.delete(dependent_kind, dependent, "Foreground" if deep else "Background")
        if waiting:
            return

        def release(o: Object) -> None:
            o["metadata"]["finalizers"] = [
                f for f in o["metadata"]["finalizers"] if f != FOREGROUND
            ]
            if not o["metadata"]["finalizers"]:
                del o["metadata"]["finalizers"]

        held = kind is kinds.PODS and owner["metadata"].get("deletionGracePeriodSeconds", 0) > 0
        others = [f for f in owner["metadata"]["finalizers"] if f != FOREGROUND]
        if held or others:
            self.store.change(kind, namespace, name, release)
        else:
            self.store.remove(kind, namespace, name)

    def _changed(self, change: Change) -> None:
        meta = change.object["metadata"]
        if change.type == "DELETED":
            for reference in meta.get("ownerReferences") or []:
                owner = self._owner(reference, meta.get("namespace", ""))
                if owner and FOREGROUND in (owner[1]["metadata"].get("finalizers") or []):
                    kind, obj = owner
                    self._later(
                        self._advance(
                            kind,
                            obj["metadata"]["uid"],
                            obj["metadata"].get("namespace", ""),
                            obj["metadata"]["name"],
                        )
                    )
            if self.dependents(meta["uid"]):
                self._later(self._sweep(meta["uid"]))
        elif change.type == "ADDED" and meta.get("ownerReferences"):
            uids = [r.get("uid", "") for r in meta["ownerReferences"]]
            self._later(self._sweep(*uids))

    def _owner(self, reference: dict[str, Any], namespace: str) -> tuple[Kind, Object] | None:
        for kind in kinds.ALL:
            if kind.kind == reference.get("kind") and kind.api_version == reference.get(
                "apiVersion"
            ):
                obj = self.store.get(kind, namespace, reference.get("name", ""))
                if obj and obj["metadata"]["uid"] == reference.get("uid"):
                    return kind, obj
        return None

    async def _sweep(self, *uids: str) -> None:
        """Delete in the background what has owners, none of which exists."""
        await asyncio.sleep(self.timing.collect)
        for uid in uids:
            for kind, obj in self.dependents(uid):
                meta = obj["metadata"]
                alive = [
                    r for r in meta["ownerReferences"] if self._owner(r, meta.get("namespace", ""))
                ]
                if not alive and "deletionTimestamp" not in meta:
                    self.delete(kind, obj, "Background")

    def _orphan(self, uid: str) -> None:
        for kind, obj in self.dependents(uid):

            def strip(o: Object) -> None:
                kept = [r for r in o["metadata"]["ownerReferences"] if r.get("uid") != uid]
                o["metadata"]["ownerReferences"] = kept

            self.store.change(
                kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"], strip
            )

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
