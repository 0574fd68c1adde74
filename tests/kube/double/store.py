"""What the cluster knows: objects, resource versions, and the log of every change (watches read
it).

Enters: whole objects. Leaves: objects that callers must treat as frozen (every write makes a new
    one) and
:class:`Change` rows. Touches nothing but its own memory; everything happens on the loop's thread.
"""

from __future__ import annotations

import copy
import json
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from . import errors
from .kinds import Kind

Object = dict[str, Any]
Key = tuple[str, str]


def now() -> str:
    """The time as Kubernetes writes it, whole seconds, UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Change:
    """One row of the log: what happened to which object at which version, and how it was before."""

    version: int
    kind: Kind
    type: str
    object: Object
    before: Object | None
    _line: bytes = field(default=b"", repr=False)

    def line(self) -> bytes:
        """The watch event, encoded once for all watchers."""
        if not self._line:
            self._line = (
                json.dumps(
                    {"type": self.type, "object": self.object}, separators=(",", ":")
                ).encode()
                + b"\n"
            )
        return self._line


class Store:
    """Objects by resource and key, and the log. ``oldest`` is the version before which history is
    forgotten."""

    def __init__(self, first_version: int = 1000) -> None:
        self.version = first_version
        self.oldest = first_version
        self.objects: dict[str, dict[Key, Object]] = {}
        self.log: list[Change] = []
        self.listeners: list[Callable[[Change], None]] = []
        self.event_names: dict[tuple[str, ...], str] = {}

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self.objects.get(kind.qualified, {}).get(
            (namespace if kind.namespaced else "", name)
        )

    def need(self, kind: Kind, namespace: str, name: str) -> Object:
        found = self.get(kind, namespace, name)
        if found is None:
            raise errors.not_found(kind, name)
        return found

    def all(self, kind: Kind, namespace: str = "") -> list[Object]:
        rows = self.objects.get(kind.qualified, {})
        return [rows[key] for key in sorted(rows) if not namespace or key[0] == namespace]

    def create(self, kind: Kind, body: Object) -> Object:
        """Store a new object: uid, version, creation time and generation are given here."""
        made = copy.deepcopy(body)
        meta = made.setdefault("metadata", {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + secrets.token_hex(3)[:5]
        namespace = meta.get("namespace", "") if kind.namespaced else ""
        key = (namespace, meta["name"])
        rows = self.objects.setdefault(kind.qualified, {})
        if key in rows:
            raise errors.already_exists(kind, meta["name"])
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = now()
        if "spec" in made and kind.plural not in (
            "services",
            "resourcequotas",
            "nodes",
            "namespaces",
        ):
            meta["generation"] = 1
        made.setdefault("kind", kind.kind)
        made.setdefault("apiVersion", kind.api_version)
        self._record(kind, "ADDED", made, None)
        return made

    def change(
        self, kind: Kind, namespace: str, name: str, edit: Callable[[Object], Any]
    ) -> Object | None:
        """Edit a copy and store it; nothing is recorded when nothing changed. None when the
        object is gone."""
        before = self.get(kind, namespace, name)
        if before is None:
            return None
        after = copy.deepcopy(before)
        edit(after)
        if after == before:
            return before
        if (
            after.get("spec") != before.get("spec")
            and "generation" in after["metadata"]
            and kind.plural != "pods"
        ):
            after["metadata"]["generation"] += 1
        self._record(kind, "MODIFIED", after, before)
        return after

    def remove(self, kind: Kind, namespace: str, name: str) -> Object | None:
        before = self.get(kind, namespace, name)
        if before is None:
            return None
        self._record(kind, "DELETED", copy.deepcopy(before), before)
        return before

    def as_of(self, kind: Kind, namespace: str, version: int) -> list[Object]:
        """The objects as they were at a version, replayed from the log."""
        rows: dict[Key, Object] = {}
        for change in self.log:
            if change.version > version:
                break
            if change.kind is kind:
                meta = change.object["metadata"]
                key = (meta.get("namespace", ""), meta["name"])
                if change.type == "DELETED":
                    rows.pop(key, None)
                else:
                    rows[key] = change.object
        return [rows[key] for key in sorted(rows) if not namespace or key[0] == namespace]

    def compact(self) -> None:
        """Forget the history: a watch from any earlier version gets its 410."""
        self.oldest = self.version

    def _record(self, kind: Kind, type_: str, obj: Object, before: Object | None) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        rows = self.objects.setdefault(kind.qualified, {})
        key = (
            obj["metadata"].get("namespace", "") if kind.namespaced else "",
            obj["metadata"]["name"],
        )
        if type_ == "DELETED":
            rows.pop(key, None)
        else:
            rows[key] = obj
        change = Change(self.version, kind, type_, obj, before)
        self.log.append(change)
        for listener in list(self.listeners):
            listener(change)
