"""The meeting place of a data-parallel group, held by the front end of rank 0.

Every engine says hello with its rank and sizes. When ranks 0 to size-1 are all there exactly once,
all may load; when
all are loaded, all may serve. Anything else ends as in the real one: a rank that is not expected,
or engines that
disagree, at once; a missing rank after `join_seconds`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rehearsal.base import console
from rehearsal.base.wire import Link, Message


class Group:
    """The members of one group. `fail(reason)` is called once when it cannot come up, `lost(rank)`
    when a member is gone, `left(rank)` when it said goodbye first.
    """

    def __init__(
        self,
        facts: Message,
        local: range,
        join_seconds: float,
        *,
        fail: Callable[[str], None],
        up: Callable[[], None],
        lost: Callable[[int], None],
        left: Callable[[int], None],
    ) -> None:
        self.facts, self.local, self.join_seconds = facts, local, join_seconds
        self.fail, self.up, self.lost, self.left = fail, up, lost, left
        self.members: dict[int, Link] = {}
        self.ready: set[int] = set()
        self.overdue: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return int(self.facts["size"])

    def open(self) -> None:
        """Start the clock."""
        loop = asyncio.get_running_loop()
        self.overdue = loop.call_later(self.join_seconds, self._too_late)
        loop.call_later(min(10.0, self.join_seconds / 3), self._say_who_is_missing)

    def missing(self) -> list[int]:
        """Ranks that have not said hello."""
        return [rank for rank in range(self.size) if rank not in self.members]

    def on_message(self, link: Link, message: Message) -> None:
        """Handle hello and ready; everything else is the caller's."""
        if message.get("t") == "hello":
            self._hello(link, message)
        elif message.get("t") == "ready":
            self.ready.add(message["rank"])
            if len(self.ready) == self.size:
                for member in self.members.values():
                    member.send({"t": "go"})
                self.up()

    def on_close(self, link: Link) -> None:
        """A connection is gone."""
        rank = link.facts.get("rank")
        if rank is None or self.members.get(rank) is not link:
            return
        del self.members[rank]
        if link.said_bye:
            console.warning(
                "core_client.py:640", f"engine of data parallel rank {rank} has shut down"
            )
            self.left(rank)
        else:
            self.lost(rank)

    def _hello(self, link: Link, message: Message) -> None:
        why = self._refuse(link, message)
        if why:
            link.send({"t": "failed", "why": why})
            self.fail(f"RuntimeError: {why}")
            return
        rank = message["rank"]
        link.facts = message
        self.members[rank] = link
        console.log(
            "DEBUG",
            "utils.py:1103",
            f"HELLO from {'local' if rank in self.local else 'remote'} core engine process {rank}.",
        )
        if not self.missing():
            if self.overdue:
                self.overdue.cancel()
            for member in self.members.values():
                member.send({"t": "init"})

    def _refuse(self, link: Link, message: Message) -> str | None:
        rank = message.get("rank")
        if not isinstance(rank, int) or not 0 <= rank < self.size:
            return (
                f"Message from engine with unexpected data parallel rank: {rank} "
                f"(data_parallel_size is {self.size})"
            )
        different = [
            f"{name}={message.get(name)!r} against {self.facts[name]!r}"
            for name in self.facts
            if name != "mode" and message.get(name) != self.facts[name]
        ]
        if message.get("mode") not in (None, self.facts["mode"]):
            different.append(
                f"load balancing {message.get('mode')!r} against {self.facts['mode']!r}"
            )
        if different:
            return (
                f"Configuration mismatch detected for engine {rank}. All DP workers must have "
                "identical configurations for parameters that affect "
                f"collective communication. Worker: {', '.join(different)}. Please ensure all "
                "workers are started with the same command-line arguments."
            )
        if rank in self.members:
            return (
                f"Unexpected HELLO message for {'local' if rank in self.local else 'remote'} "
                f"engine {rank} in CONNECTED state: two engines have data parallel rank {rank}."
            )
        return None

    def _say_who_is_missing(self) -> None:
        absent = self.missing()
        if absent:
            local = sum(rank in self.local for rank in absent)
            console.info(
                "utils.py:1051",
                f"Waiting for {local} local, {len(absent) - local} remote core engine proc(s) to "
                f"connect: data parallel ranks {absent}.",
            )

    def _too_late(self) -> None:
        self.fail(
            "TimeoutError: Timed out waiting for engine core processes to start. Waited "
            f"{self.join_seconds:g} s; data parallel ranks {self.missing()} of {self.size} never "
            "said hello."
        )
