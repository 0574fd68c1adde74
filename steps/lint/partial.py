"""A case with problems of form, as far as the rules can still be asked about it.

Enters: a case's text and the problems its loading told. Leaves: a :class:`Partial`: the
case without what is wrong, and the rules that cannot be asked then; None when there is no
fleet left to ask about. Touches nothing.

What is wrong is left out (a key, a benchmark) or stood in for (a number, a command), and
the rules that would see the gap are named, so that they tell nothing that only follows.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steps.core.case import build, check
from steps.core.case.case import Case
from steps.core.case.parts.single import PORT_WORDS
from steps.core.case.source import DataPath, Source
from steps.core.errors import CaseError, Problem, errors_of

#: Problems after which there is no case at all, or one too large to look at.
_HOPELESS = ("MN001", "MN002", "MN003", "MN009", "MN016")
_COMMAND = ("server_cmd", "server_cmd_template")
#: What cannot be asked without a command.
_OF_COMMANDS = frozenset({"MN02", "MN2", "MN302", "MN4", "MN5", "MN6"})
#: What only a case of one node has at its top: what stands in for it, and what cannot be asked.
_OF_ONE: dict[str, tuple[Any, frozenset[str]]] = {
    "name": ("case", frozenset()),
    "envs": ({}, frozenset({"MN02", "MN6"})),
    "server_cmd": ([], _OF_COMMANDS),
    "server_cmd_extra": ([], _OF_COMMANDS),
    "epd_server_cmds": ([["--port", "7100"]], _OF_COMMANDS),
    "epd_proxy_args": (["--port", "7101"], _OF_COMMANDS),
}
_LISTS = ("deployment", "config", "templates")
_ROLES = ("prefiller_host_index", "decoder_host_index")
#: What stands in for a number of a node in the routing dialect; other keys have defaults.
_NUMBERS = {"port_start": 7100, "dp_rpc_port": 12321, "dp_address": "127.0.0.1"}
_ABSENT = object()
#: Mending what loading told shows what it did not come to; that is mended in its turn.
_ROUNDS = 3


@dataclass(frozen=True)
class Partial:
    """What is left of a case, and what may not be asked of it: beginnings of codes."""

    case: Case
    problems: list[Problem]
    unasked: frozenset[str]

    def asks(self, problem: Problem) -> bool:
        """Whether the problem is more than what follows from the gaps."""
        return not problem.rule.startswith(tuple(self.unasked))


def of(source: Source, problems: Sequence[Problem]) -> Partial | None:
    """What is left of a case that was refused for ``problems``."""
    source = check.plain_numbers(source)
    mender, pending, new = _Mender(source), errors_of(problems), list[Problem]()
    told = {(problem.rule, problem.message) for problem in problems}
    for _ in range(_ROUNDS):
        if any(problem.rule in _HOPELESS for problem in pending):
            return None
        for problem in pending:
            mender.mend(problem)
        if not mender.settle():
            return None
        spans = {at: span for at, span in source.spans.items() if mender.at(at) is not _ABSENT}
        mended = dataclasses.replace(source, data=mender.data, spans=spans)
        if errors_of(check.check(mended)):
            return None
        try:
            case, found = build.attempt(mended)
        except CaseError:
            return None
        pending = [each for each in found if (each.rule, each.message) not in told]
        if not pending:
            return Partial(case, new, frozenset(mender.unasked))
        new += pending
        told |= {(problem.rule, problem.message) for problem in pending}
    return None


@dataclass
class _Mender:
    """Leaves out what is wrong, and notes what cannot be asked without it."""

    source: Source
    data: dict[str, Any] = field(init=False)
    unasked: set[str] = field(default_factory=lambda: {"MN199"})
    _paths: dict[str, DataPath] = field(init=False)

    def __post_init__(self) -> None:
        self.data = copy.deepcopy(self.source.data)
        self._paths = {".".join(map(str, path)): path for path in self.source.marks}

    def mend(self, problem: Problem) -> None:
        """Leave out or stand in for what one problem is about."""
        parent, _, key = problem.field.rpartition(".")
        path = self._paths.get(problem.field)
        path = (*self._paths.get(parent, ()), key) if path is None else path
        own = _OF_ONE if self.source.only else {}
        if not path or path[0] not in {*self.data, *_REQUIRED, *own}:
            return
        if path[0] == "benchmarks":
            self._benchmark(path)
        elif problem.rule == "MN005" and "groups" not in path:
            self._forget(path)
        elif path[0] in own:
            self._of_one(problem.rule, path)
        elif path[0] in _LISTS and len(path) > 2:
            self._of_node(path)
        elif path[0] == "env_common" and len(path) > 1:
            self._variable(path)
        elif path[0] not in (*_LISTS, "num_nodes", "routing", "disaggregated_prefill"):
            self._stand_in(path[0])

    def settle(self) -> bool:
        """Make the number of nodes and the roles fit the lists; whether there is a fleet."""
        data = self.data
        if self.source.only:
            return True
        lists = [data[key] for key in _LISTS if isinstance(data.get(key), list)]
        size = min(map(len, lists), default=0)
        if not size or size != max(map(len, lists)):
            return False
        data["num_nodes"] = size
        for key in _REQUIRED:
            if key not in data:
                self._stand_in(key)
        split: Any = data.get("disaggregated_prefill")
        if split and not self._roles(split, size):
            del data["disaggregated_prefill"]
            self.unasked |= {"MN02", "MN2", "MN4", "MN5", "MN705"}
        return True

    def _roles(self, split: Any, size: int) -> bool:
        lists: list[Any] = [split.get(role) for role in _ROLES] if isinstance(split, dict) else []
        if not lists or not all(isinstance(each, list) for each in lists):
            return False
        kept = [[n for n in each if type(n) is int and 0 <= n < size] for each in lists]
        if kept != lists:
            self.unasked.add("MN402")
        split.update(zip(_ROLES, kept, strict=True))
        return all(kept) and not set(kept[0]) & set(kept[1])

    def _benchmark(self, path: DataPath) -> None:
        entries = self.data.get("benchmarks")
        if len(path) > 1 and isinstance(entries, dict):
            entries.pop(path[1], None)
            if entries:
                return
        self._stand_in("benchmarks")

    def _of_node(self, path: DataPath) -> None:
        place, at, key = path[:3]
        node = self.data[place][at] if isinstance(at, int) else None
        if not isinstance(node, dict):
            return
        if key in _COMMAND:
            node[key] = f"vllm serve {self.data.get('model')}" if key == "server_cmd" else []
            self.unasked |= _OF_COMMANDS
        elif key in ("envs", "env_extend") and len(path) > 3:
            self._variable(path)
        elif place == "config":
            node.pop(key, None)
            node.update({key: _NUMBERS[key]} if key in _NUMBERS else {})
            self.unasked |= {"MN02", "MN2", "MN3", "MN4"}
        else:
            node[key] = {} if key == "envs" else None
            self.unasked |= {"MN02", "MN6"}
            if key != "envs":
                del node[key]

    def _of_one(self, rule: str, path: DataPath) -> None:
        """What only a case of one node has at its top."""
        if rule == "MN018" or path[-1] in PORT_WORDS:  # not read; absent a free one
            self._forget(path)
        elif path[0] == "envs" and len(path) > 1:
            self._variable(path)
        else:
            value, unasked = _OF_ONE[path[0]]
            self.data[path[0]] = copy.deepcopy(value)
            self.unasked |= unasked

    def _variable(self, path: DataPath) -> None:
        """A variable that is there, with a value that nobody knows; none without a name."""
        self._forget(path)
        holder, name = self.at(path[:-1]), str(path[-1])
        if isinstance(holder, dict) and name.isidentifier():
            holder[name] = ""
        self.unasked |= {"MN303", "MN604", "MN605"}

    def _stand_in(self, key: str) -> None:
        """A key of the top is left out, or stood in for when every case has it."""
        self.data.pop(key, None)
        self.data.update({key: _REQUIRED[key][0]} if key in _REQUIRED else {})
        self.unasked |= {"MN008", *_REQUIRED.get(key, ((), ()))[1]}
        if key == "kv_pool":
            self.unasked.add("MN4")

    def _forget(self, path: DataPath) -> None:
        holder = self.at(path[:-1])
        if isinstance(holder, dict):
            holder.pop(path[-1], None)

    def at(self, path: DataPath) -> Any:
        """The value that is left at a path."""
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return _ABSENT
        return value


#: Keys that every case has: what stands in for them, and what cannot be asked then.
_REQUIRED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "model": ("model", ("MN501", "MN502")),
    "npu_per_node": (0, ("MN3", "MN409")),
    "benchmarks": ({}, ("MN7",)),
}
