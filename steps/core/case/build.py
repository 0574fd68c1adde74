"""A file to a :class:`Case`: the check of its form, then of what only whole values show.

Enters: a YAML file. Leaves: a :class:`Case`, or a :class:`CaseError` with all
its problems. Touches: reads that one file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from steps.core.case import benchmark, check, content, fields, shellwords
from steps.core.case.case import Case, CaseNode, Ranks, Split, seconds
from steps.core.case.parts import pool, proxy, single, variants
from steps.core.case.shellwords import Word
from steps.core.case.source import Source, load_yaml
from steps.core.errors import CaseError, Place, Problem, UsageError, enough, errors_of

#: Servers of a fleet; words and variables that a command, and all servers together, have.
MAX_SERVERS = 4096
MAX_WORDS = 4096
MAX_WORK = 200_000
MAX_RANK_DEVICES = 1024
#: The longest word or variable that Linux passes to a program (MAX_ARG_STRLEN).
MAX_WORD = 131_071


def load_case(path: Path, name: str = "", *, only: str = "") -> Case:
    """Read, check and normalise a case.

    Args:
        name: what messages call the file; default: its path.
        only: which case, where the file holds several.

    Raises:
        CaseError: with every problem found.
        UsageError: the file holds several, and nobody says which, or names none of them.
    """
    source = load_yaml(path, name)
    return build_case(choose(source.file, cases_in(source), only))


def cases_in(source: Source) -> dict[str, Source]:
    """What a file holds: a case without a name, or each of its ``test_cases`` by its own.

    Of cases with the same name, the second is ``NAME-2``.

    Raises:
        CaseError: the file is no list of cases.
    """
    if not fields.is_several(source.data):
        return {"": source}
    problems = check.check_form(source, "several")
    if errors_of(problems):
        raise CaseError(enough(problems))
    return cases_left(source)


def cases_left(source: Source) -> dict[str, Source]:
    """The cases of a file of several; what is no case at all is left out."""
    found: dict[str, Source] = {}
    for at, entry in enumerate(source.entries("test_cases")):
        if not isinstance(entry.data, dict):
            continue
        own = entry.data.get("name")
        base = own.strip() if isinstance(own, str) and own.strip() else f"case-{at}"
        names = (base, *(f"{base}-{number}" for number in range(2, at + 3)))
        only = next(text for text in names if text not in found)
        found[only] = replace(entry, only=only)
    return found


def choose(file: str, sources: Mapping[str, Source], only: str) -> Source:
    """The case of a file that ``only`` names, or the one that there is.

    Raises:
        UsageError: there are several, and nobody says which, or it is none of them.
    """
    if only in sources:
        return sources[only]
    if not only and len(sources) == 1:
        return next(iter(sources.values()))
    if "" in sources:
        raise UsageError(f"{file} holds one case", "Leave out --only.")
    close = difflib.get_close_matches(only, sources, 1)
    listed = ", ".join(sources)
    raise UsageError(
        f"{file} has no case {only!r}" if only else f"{file} holds {len(sources)} cases: {listed}",
        (f"Did you mean --only '{close[0]}'? " if close else "")
        + (f"It has: {listed}." if only else "Choose one: --only NAME."),
    )


def build_case(source: Source) -> Case:
    """Check and normalise a parsed case.

    Raises:
        CaseError: with every problem found.
    """
    source = check.plain_numbers(source)
    problems = check.check(source)
    if errors_of(problems):
        raise CaseError(enough(problems + _counts(source)))
    case, problems = attempt(source)
    if problems:
        raise CaseError(enough(problems))
    return case


def attempt(source: Source) -> tuple[Case, list[Problem]]:
    """The case of a text whose form is right, and what only whole values show to be wrong.

    Only the linter looks at a case that has problems.

    Raises:
        CaseError: it is too large to be made.
    """
    builder = _Builder(source)
    return builder.build(), builder.problems


def _counts(source: Source) -> list[Problem]:
    """``num_nodes`` against the lists, reported even when the form has errors."""
    data = source.data
    if not isinstance(data, dict):
        return []
    wanted = data.get("num_nodes")
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        return []
    found = []
    for key in ("deployment", "config", "templates"):
        value = data.get(key)
        if isinstance(value, list) and len(value) != wanted:
            found.append(
                source.problem(
                    "MN010",
                    f"has {len(value)} entries, expected {wanted} as num_nodes says",
                    (key,),
                    "Give one entry a node, or correct num_nodes.",
                    related=(source.place("num_nodes"),),
                )
            )
    return found


#: Words of a shell that no program has for a name or takes before its own.
_SHELL = ("&&", "||", "|", ";", "&", "export", "source", "cd", "ulimit", "set", "unset", ".")


def _before_vllm(texts: list[str]) -> list[str]:
    """The words in front of ``vllm``; none when it is the first, or not there at all."""
    for at, text in enumerate(texts[:12]):
        if Path(text).name == "vllm" or text.startswith("vllm.entrypoints"):
            return texts[:at]
    return []


class _Builder:
    """Turns checked data into a Case, collecting what only whole values show."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.data: dict[str, Any] = source.data
        self.problems: list[Problem] = _counts(source)

    def build(self) -> Case:
        data = self.data
        dialect = fields.dialect_of(self.source) or "deployment"
        size = data.get("num_nodes", 1)
        if size * len(data.get("env_common") or ()) > MAX_WORK:
            self._too_large("env_common", f"{len(data['env_common']):,} variables on {size} nodes")
            raise CaseError(enough(self.problems))
        make = {"deployment": self._deployment, "routing": self._routing, "single": self._single}
        nodes = make[dialect]()
        self._bound(nodes)
        benchmarks = tuple(
            benchmark.build(name, entry, self._problem)
            for name, entry in (data.get("benchmarks") or {}).items()
            if entry is not None
        )
        kinds = {entry.name: entry.case_type for entry in benchmarks}
        return Case(
            file=self.source.file,
            sha256=self.source.sha256,
            dialect=dialect,
            name=self._name(),
            model=data["model"],
            num_nodes=size,
            npu_per_node=data["npu_per_node"] if "npu_per_node" in data else single.devices(nodes),
            nodes=nodes,
            split=self._split(dialect),
            kv_pool=pool.build(data.get("kv_pool"), size, self._problem),
            proxy=single.proxy(data)
            if dialect == "single"
            else proxy.build(data.get("proxy"), self._problem),
            benchmarks=benchmarks,
            content=content.build(
                data,
                content.SINGLE if dialect == "single" else content.SEVERAL,
                kinds,
                self._problem,
            ),
            cluster_hosts=self._hosts(),
            special_dependencies={
                name: str(version)
                for name, version in (data.get("special_dependencies") or {}).items()
            },
            timeouts=self._timeouts(),
            engine=data.get("engine", ""),
            proof=data.get("proof", True),
            rehearse=data.get("rehearse", False),
            lint_ignore=dict((data.get("lint") or {}).get("ignore") or {}),
            inherit=tuple(data.get("inherit") or ()),
            source=self.source,
            only=self.source.only,
            variants=variants.build(data, self._problem),
        )

    def _name(self) -> str:
        return self.source.only or self.data.get("test_name") or Path(self.source.file).stem

    def _problem(
        self, rule: str, message: str, hint: str, *path: Any, place: Place | None = None
    ) -> None:
        self.problems.append(self.source.problem(rule, message, path, hint, place=place))

    def _too_large(self, key: str, found: str) -> None:
        self._problem("MN016", f"found {found}", "No fleet is so large; correct it.", key)

    def _bound(self, nodes: tuple[CaseNode, ...]) -> None:
        """What a short text can make of a fleet: ranks, and all that each of them is told."""
        ranks = [1 if node.ranks is None else node.ranks.dp_size_local for node in nodes]
        told = [len(node.command) + len(node.envs) for node in nodes]
        work = sum(rank * size for rank, size in zip(ranks, told, strict=True))
        if sum(ranks) > MAX_SERVERS:
            self._too_large("config", f"{sum(ranks):,} ranks, expected at most {MAX_SERVERS:,}")
        elif work > MAX_WORK:
            found = f"{work:,} words and variables of all servers, expected at most {MAX_WORK:,}"
            self._too_large("num_nodes", found)
        for node in nodes:
            for name, text in node.envs.items():
                if len(text) > MAX_WORD:
                    self._too_long("envs", node, name)
            if any(len(word.text) > MAX_WORD for word in node.command):
                self._too_long("command", node)

    def _too_long(self, what: str, node: CaseNode, *names: str) -> None:
        self._problem(
            "MN007",
            f"holds a text of more than {MAX_WORD:,} characters",
            "Linux passes none so long to a program.",
            *node.paths[what],
            *names,
        )

    def _hosts(self) -> tuple[str, ...]:
        hosts, size = tuple(self.data.get("cluster_hosts") or ()), self.data.get("num_nodes", 1)
        if hosts and len(hosts) != size:
            self._problem(
                "MN010",
                f"has {len(hosts)} entries, expected {size} as num_nodes says",
                "Give one address a node, in the order of the nodes.",
                "cluster_hosts",
            )
        seen: set[str] = set()
        for at, host in enumerate(hosts):
            if host in seen:
                message = f"'{host}' is listed twice"
                hint = "Each node has an address of its own."
                self._problem("MN011", message, hint, "cluster_hosts", at)
            seen.add(host)
        return hosts

    def _environment(self, *layers: Any) -> dict[str, str]:
        merged: dict[str, str] = {}
        for layer in layers:
            merged.update({key: str(value) for key, value in (layer or {}).items()})
        return merged

    def _single(self) -> tuple[CaseNode, ...]:
        return single.nodes(self.source, self._problem)

    def _deployment(self) -> tuple[CaseNode, ...]:
        nodes = []
        for at, entry in enumerate(self.data["deployment"]):
            path = ("deployment", at)
            command = self._command(entry["server_cmd"], (*path, "server_cmd"))
            nodes.append(
                CaseNode(
                    index=at,
                    envs=self._environment(
                        self.data.get("env_common"), entry.get("envs"), entry.get("env_extend")
                    ),
                    command=command,
                    paths={
                        "node": path,
                        "envs": (*path, "envs"),
                        "command": (*path, "server_cmd"),
                    },
                    headless=any(word.text == "--headless" for word in command),
                    master_index=self._node_index(entry.get("master_index"), *path, "master_index"),
                )
            )
            if entry.get("local_index") not in (None, at):
                message = f"found {entry['local_index']}, expected {at}, its position in the list"
                self._problem("MN012", message, "List the nodes in order.", *path, "local_index")
        return tuple(nodes)

    def _command(self, text: str, path: tuple[Any, ...]) -> tuple[Word, ...]:
        span = self.source.spans.get(path)
        try:
            pieces = shellwords.split(text)
        except shellwords.UnbalancedQuote as error:
            place = self.source.place(*path)
            if span:
                locator = shellwords.Locator(self.source.file, self.source.lines, span)
                for raw in text[: error.offset + 1].split()[:MAX_WORDS]:
                    place = locator.place(raw)
            hint = "Close the quote; JSON values stand in single quotes."
            self._problem("MN013", str(error), hint, *path, place=place)
            return ()
        if not pieces:
            self._problem("MN014", "is empty, expected a vllm serve command", "", *path)
            return ()
        if len(pieces) > MAX_WORDS:
            many = f"found {len(pieces):,} words, expected at most {MAX_WORDS:,}"
            self._problem("MN007", many, "No command is so long.", *path)
            return ()
        if span is None:
            place = self.source.place(*path)
            return tuple(Word(word, place) for word, _, _ in pieces)
        locator = shellwords.Locator(self.source.file, self.source.lines, span)
        found = tuple(Word(word, locator.place(text[a:b])) for word, a, b in pieces)
        self._is_vllm(found, path)
        return found

    def _is_vllm(self, command: tuple[Word, ...], path: tuple[Any, ...]) -> None:
        texts = [word.text for word in command]
        serves = "serve" in texts[:6] and any(Path(t).name == "vllm" for t in texts[:5])
        module = any(t.startswith("vllm.entrypoints") for t in texts[:5])
        shell = next((t for t in _before_vllm(texts) if t in _SHELL or t.endswith(";")), "")
        if shell or not (serves or module):
            hint = "A server command starts with 'vllm serve'; no shell runs it."
            if shell:
                hint = f"No shell runs it, so there is no '{shell}': variables stand in 'envs'."
            message = f"found {' '.join(texts[:2])!r}, expected 'vllm serve MODEL ...'"
            self._problem("MN015", message, hint, *path, place=command[0].place)

    def _node_index(self, value: int | None, *path: Any) -> int | None:
        if value is not None and value >= self.data["num_nodes"]:
            message = f"found {value}, expected a node index below {self.data['num_nodes']}"
            self._problem("MN012", message, "Nodes count from 0.", *path)
            return None
        return value

    def _routing(self) -> tuple[CaseNode, ...]:
        configs = self._by_node("config")
        templates = self._by_node("templates")
        nodes = []
        for index in range(self.data["num_nodes"]):
            if index not in configs or index not in templates:
                continue
            at_config, config = configs[index]
            at, template = templates[index]
            path = ("templates", at)
            ranks = self._ranks(config, at_config)
            nodes.append(
                CaseNode(
                    index=index,
                    envs=self._environment(self.data.get("env_common"), template.get("envs")),
                    command=self._template(template["server_cmd_template"], path),
                    paths={
                        "node": path,
                        "envs": (*path, "envs"),
                        "command": (*path, "server_cmd_template"),
                        "config": ("config", at_config),
                    },
                    ranks=ranks,
                )
            )
        return tuple(nodes)

    def _ranks(self, config: dict[str, Any], at: int) -> Ranks:
        known = Ranks.__dataclass_fields__
        ranks = Ranks(**{key: value for key, value in config.items() if key in known})
        last = ranks.dp_rank_start + ranks.dp_size_local - 1
        if last >= ranks.dp_size:
            message = f"ranks {ranks.dp_rank_start} to {last} do not fit dp_size {ranks.dp_size}"
            hint = "dp_rank_start + dp_size_local is at most dp_size."
            self._problem("MN016", message, hint, "config", at, "dp_rank_start")
        if ranks.devices_per_rank > MAX_RANK_DEVICES:
            self._too_large("config", f"{ranks.devices_per_rank:,} devices of one rank")
        last = ranks.port_start + ranks.dp_size_local - 1
        if last > 65535:
            message = (
                f"found {ranks.port_start}, its last rank would listen on port {last}, "
                "expected at most 65535"
            )
            self._problem(
                "MN016", message, "Choose a lower port_start.", "config", at, "port_start"
            )
        return ranks

    def _template(self, items: list[Any], path: tuple[Any, ...]) -> tuple[Word, ...]:
        at = self.source.place(*path)
        model = self.source.place("model")
        head = (Word("vllm", at), Word("serve", at), Word(self.data["model"], model))
        rest = tuple(
            Word(str(item), self.source.place(*path, "server_cmd_template", n))
            for n, item in enumerate(items)
        )
        return head + rest

    def _by_node(self, key: str) -> dict[int, tuple[int, Any]]:
        found: dict[int, tuple[int, Any]] = {}
        for at, entry in enumerate(self.data[key]):
            index = entry.get("node_index", at)
            if index in found:
                message = f"node {index} has two entries"
                self._problem("MN012", message, "Give one entry a node.", key, at, "node_index")
            elif self._node_index(index, key, at, "node_index") is not None:
                found[index] = (at, entry)
        if not self.problems:
            for index in range(self.data["num_nodes"]):
                if index not in found:
                    self._problem("MN012", f"node {index} has no entry", "", key)
        return found

    def _split(self, dialect: str) -> Split | None:
        if dialect == "routing":
            if self.data["routing"]["type"] != "disaggregated_prefill":
                return None
            entry = self.data["routing"]["groups"]
            paths: tuple[tuple[str, ...], ...]
            paths = (("routing", "groups", "prefiller"), ("routing", "groups", "decoder"))
        else:
            entry = self.data.get("disaggregated_prefill") or {}
            if not entry.get("enabled"):
                return None
            paths = (
                ("disaggregated_prefill", "prefiller_host_index"),
                ("disaggregated_prefill", "decoder_host_index"),
            )
        for path in paths:
            if path[-1] not in entry:
                self.problems.append(
                    Problem(
                        "MN004",
                        f"{'.'.join(path[:-1])}: required key '{path[-1]}' is missing",
                        self.source.place(*path[:-1]),
                        "List the nodes of that role.",
                        field=".".join(path),
                    )
                )
            elif not entry[path[-1]]:
                self._problem("MN007", "is empty, expected node indices", "", *path)
        lists = [entry.get(path[-1], []) for path in paths]
        taken: dict[int, str] = {}
        for role, indices in zip(paths, lists, strict=True):
            for at, index in enumerate(indices):
                self._node_index(index, *role, at)
                if index in taken:
                    message = f"node {index} is already in {taken[index]}"
                    self._problem("MN017", message, "A node has one role.", *role, at)
                taken.setdefault(index, role[-1])
        return Split(tuple(lists[0]), tuple(lists[1]))

    def _timeouts(self) -> dict[str, float]:
        found = {}
        for phase, value in (self.data.get("timeouts") or {}).items():
            try:
                found[phase] = seconds(value)
            except ValueError as error:
                self._problem("MN007", str(error), "", "timeouts", phase)
        return found
