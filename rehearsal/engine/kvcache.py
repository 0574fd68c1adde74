"""The blocks of an engine's KV cache, as its scheduler gives them to requests."""

from __future__ import annotations

from collections.abc import Hashable

TOKENS = 1 << 20
"""Room of a cache that no option bounds, in tokens."""


class Blocks:
    """Blocks of `size` tokens; of a given number vLLM keeps one for itself."""

    def __init__(self, size: int, override: int | None, longest: int) -> None:
        self.size = size
        self.total = override - 1 if override else -(-max(TOKENS, longest) // size)
        self.held: dict[Hashable, int] = {}
        self.free = self.total

    @property
    def usage(self) -> float:
        """The share that is in use."""
        return 1.0 - self.free / self.total if self.total > 0 else 0.0

    def take(self, key: Hashable, tokens: int) -> bool:
        """Hold enough for so many tokens; false when there are not enough, and nothing changes."""
        more = -(-tokens // self.size) - self.held.get(key, 0)
        if more > self.free:
            return False
        if more > 0:
            self.held[key] = self.held.get(key, 0) + more
            self.free -= more
        return True

    def give(self, key: Hashable) -> None:
        """Give back all that a request holds."""
        self.free += self.held.pop(key, 0)
