"""Watching a collection: every change, once, whatever happens to the connection.

Enters: a path, a selector. Leaves: calls ``change(kind, object)`` with ADDED,
MODIFIED, DELETED. Touches the API. A watch that ends is renewed from where it
was; one whose past is gone (410) begins with a fresh list, and what is missing
from that list is reported as deleted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from k8s.api.client import WATCH_SECONDS, Api, ApiError, Json
from steps.core.case.numbers import loads


class Watch:
    """One watched collection, on a thread of its own.

    Attributes:
        trouble: what the API last said instead of answering; empty when all is well.
        silent_since: when that began, by the monotonic clock.
    """

    def __init__(
        self,
        api: Api,
        target: str,
        change: Callable[[str, Json], None],
        selector: str = "",
        from_now: bool = False,
    ) -> None:
        self.api = api
        self.target = target
        self.change = change
        self.query = {"labelSelector": selector} if selector else {}
        self.trouble = ""
        self.silent_since = 0.0
        self._from_now = from_now
        self._open = False
        self._known: dict[str, Json] = {}
        self._version = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"watch {target}", daemon=True)

    def start(self) -> Watch:
        """Begin; what is there already is reported first, unless ``from_now``."""
        if self._from_now:
            page = self.api.get(self.target, {**self.query, "limit": 1})
            self._version = page["metadata"]["resourceVersion"]
        self._thread.start()
        return self

    def close(self) -> None:
        """Report no more."""
        self._over.set()

    def _main(self) -> None:
        delay = 0.1
        while not self._over.is_set():
            self._open = False
            try:
                if not self._version:
                    self._list()
                self._follow()
                self.trouble, delay = "", 0.1
            except ApiError as error:
                if error.code == 410:
                    self._version = ""
                    self._over.wait(0.05)
                    continue
                # What was open and is cut is opened again; only a refusal to open is trouble.
                if not self._open or error.code:
                    if not self.trouble:
                        self.silent_since = time.monotonic()
                    self.trouble = str(error)
                self._over.wait(max(delay, error.retry_after))
                delay = min(delay * 2, 2.0)

    def _list(self) -> None:
        """Everything as it is now."""
        found: dict[str, Json] = {}
        more, version = "", ""
        while True:
            query = {**self.query, "limit": 500, "continue": more}
            page = self.api.ask("GET", self.target, query, patience=0)
            version = page["metadata"]["resourceVersion"]
            found.update({item["metadata"]["uid"]: item for item in page.get("items") or []})
            more = page["metadata"].get("continue") or ""
            if not more:
                break
        self._answered()
        for uid in [uid for uid in self._known if uid not in found]:
            self._report("DELETED", self._known[uid])
        for uid, item in found.items():
            before = self._known.get(uid)
            if before is None:
                self._report("ADDED", item)
            elif _version(before) != _version(item):
                self._report("MODIFIED", item)
        self._version = version

    def _follow(self) -> None:
        query = {
            **self.query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": WATCH_SECONDS,
        }
        # Answered as soon as it is open: where nothing happens, the first line may take minutes,
        # and what stands between us may cut it before.
        over, silence = self._over.is_set, WATCH_SECONDS + 15
        for line in self.api.lines(self.target, query, silence, over, self._opened):
            self._answered()
            try:
                event = loads(line)
            except ValueError:  # torn off in the middle; asked for again from the last version
                return
            item = event["object"]
            if event["type"] == "ERROR":
                raise ApiError(
                    int(item.get("code") or 500), item.get("reason", ""), item.get("message", "")
                )
            self._version = _version(item)
            if event["type"] != "BOOKMARK":
                self._report(event["type"], item)

    def _report(self, kind: str, item: Json) -> None:
        uid = item["metadata"]["uid"]
        if kind == "DELETED":
            self._known.pop(uid, None)
        else:
            slim: dict[str, Any] = {"metadata": {**item["metadata"], "managedFields": None}}
            self._known[uid] = slim
        if not self._over.is_set():
            self.change(kind, item)

    def _opened(self) -> None:
        self._open = True
        self._answered()

    def _answered(self) -> None:
        self.trouble, self.silent_since = "", 0.0


def _version(item: Json) -> str:
    return str(item["metadata"]["resourceVersion"])
