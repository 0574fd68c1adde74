"""YAML text to plain data, each value remembering its line and column.

Enters: a file. Leaves: a :class:`Source`, or a :class:`CaseError` with every
problem the text has as YAML. Touches: reads that one file.

The values are those of PyYAML's ``safe_load`` (YAML 1.1: ``yes`` is true), as
the upstream harness loads them; anchors and merge keys work, these as YAML
says (of a list the first wins), whichever PyYAML is installed: 6.0.4 differs
there; a key given twice in one mapping is an error, which PyYAML lets pass.
"""

from __future__ import annotations

import hashlib
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from steps.core import redaction
from steps.core.errors import MAX_PROBLEMS, CaseError, Place, Problem, cut, enough

MAX_BYTES = 1 << 20
#: What a file may make, its aliases and merge keys counted each time: values, and their text.
MAX_VALUES = 40_000
MAX_TEXT = 4 << 20
MAX_DEPTH = 60
MAX_BITS = 256
#: The longest text that can be a number or a date.
_MAX_DIGITS = 100

DataPath = tuple[Any, ...]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
#: What PyYAML's constructors raise for a value that its tag does not fit.
_UNCONSTRUCTABLE = (
    ConstructorError,
    ValueError,
    OverflowError,
    LookupError,
    AttributeError,
    TypeError,
)


@dataclass(frozen=True)
class Source:
    """A parsed file: its data, its lines, and where each value stands.

    ``marks`` maps the path of a value, such as ``("deployment", 0, "envs")``,
    to the (line, column) of its key or list item, both from 1; ``spans`` maps
    a string's path to the first and last line its text covers and its style.
    ``only`` is the name of the case that this is, in a file of several.
    """

    file: str
    data: Any
    sha256: str
    lines: tuple[str, ...]
    marks: dict[DataPath, tuple[int, int]] = field(repr=False, default_factory=dict)
    spans: dict[DataPath, tuple[int, int, int, str]] = field(repr=False, default_factory=dict)
    only: str = ""

    def entries(self, key: str) -> list[Source]:
        """Each entry of the list at ``key`` as if it were a file of its own, places kept; none
        where there is no list.
        """
        entries = self.data[key] if isinstance(self.data[key], list) else ()
        marks: dict[Any, dict[DataPath, tuple[int, int]]] = {}
        spans: dict[Any, dict[DataPath, tuple[int, int, int, str]]] = {}
        for path, mark in self.marks.items():
            if len(path) > 1 and path[0] == key:
                marks.setdefault(path[1], {})[path[2:]] = mark
        for path, span in self.spans.items():
            if len(path) > 1 and path[0] == key:
                spans.setdefault(path[1], {})[path[2:]] = span
        return [
            replace(self, data=data, marks=marks.get(at, {}), spans=spans.get(at, {}))
            for at, data in enumerate(entries)
        ]

    def place(self, *path: Any) -> Place:
        """Where the value at ``path`` stands, or its nearest parent that is there."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark:
                return Place(self.file, *mark)
        return Place(self.file)

    def problem(
        self,
        rule: str,
        message: str,
        path: DataPath,
        hint: str = "",
        *,
        place: Place | None = None,
        related: tuple[Place, ...] = (),
    ) -> Problem:
        """An error about the value at ``path``, which the message begins with.

        Args:
            place: where it shows best; absent: where the value stands.
        """
        name = cut(".".join(cut(str(part), 80) for part in path)) or "the document"
        where = place or self.place(*path)
        message = cut(f"{name}: {message}")
        return Problem(rule, message, where, cut(hint), field=name, related=related)


def load_yaml(path: Path, name: str = "") -> Source:
    """Read and parse ``path``, which messages call ``name``.

    Raises:
        CaseError: the file is absent, unreadable, too large, not UTF-8, or not
            one well-formed YAML document.
    """
    return parse_yaml(read_text(path), name or str(path))


def parse_yaml(text: str, file: str) -> Source:
    """Parse ``text``; ``file`` is the name used in messages.

    Raises:
        CaseError: as for :func:`load_yaml`.
    """
    known = redaction.here()
    known.study_yaml(text)  # before anything is said of it, and if it is no YAML
    tab = re.search(r"^ *\t", text, re.MULTILINE)
    try:
        _check_size(text, file)
        loader = Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise CaseError([_syntax_problem(error, text, file, bool(tab))]) from None
    except (RecursionError, ValueError) as error:
        raise CaseError(
            [Problem("MN001", f"not YAML: {error or 'nested too deeply'}", Place(file))]
        ) from None
    builder = _Builder(file)
    data = builder.root(root)
    known.study(data)
    if builder.problems:
        raise CaseError(enough(builder.problems))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Source(file, data, digest, tuple(text.splitlines()), builder.marks, builder.spans)


def _is_passed(path: Path) -> bool:
    """Whether a shell passed it: ``<(...)``, or standard input."""
    return str(path).startswith(("/dev/fd/", "/proc/self/fd/", "/dev/stdin"))


def read_text(path: Path) -> str:
    """The text of a file, its line ends as they are.

    Raises:
        CaseError: the file is absent, unreadable, too large, or not UTF-8.
    """

    def refuse(rule: str, message: str, hint: str) -> CaseError:
        return CaseError([Problem(rule, message, Place(str(path)), hint)])

    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise refuse("MN002", "is a directory, expected a YAML file", "Name the file in it.")
        if not stat.S_ISREG(mode) and not _is_passed(path):
            # A pipe without a writer, or a device, may be read for ever.
            raise refuse("MN002", "is no regular file", "Name a YAML file.")
        with path.open("rb") as source:
            raw = source.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            # A pipe or a device has no size of its own.
            size = max(path.stat().st_size, len(raw))
            raise refuse(
                "MN002",
                f"the file has {size:,} bytes or more, expected at most {MAX_BYTES:,}",
                "A case is a few hundred lines; is this the right file?",
            )
    except FileNotFoundError:
        raise refuse("MN002", "no such file", "Check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refuse("MN002", f"cannot be read: {reason}", "Check its permissions.") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CaseError(
            [
                Problem(
                    "MN001",
                    f"not text: byte {error.start} is not UTF-8",
                    Place(str(path), line),
                    "Save the file as UTF-8.",
                )
            ]
        ) from None


def _too_deep(file: str, mark: Any) -> Problem:
    place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
    hint = "A case needs five levels; is this the right file?"
    return Problem("MN001", f"nested more than {MAX_DEPTH} levels deep", place, hint)


def _too_much(file: str, mark: Any, what: str) -> Problem:
    place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
    return Problem("MN001", what, place, "A case is a few hundred lines; is this the right file?")


def _check_size(text: str, file: str) -> None:
    """Refuse absurd nesting and absurdly many values before a recursive parser meets them."""
    flow = max(text.count("["), text.count("{")) > MAX_DEPTH
    indent = max((len(line) - len(line.lstrip(" -?")) for line in text.splitlines()), default=0)
    if not flow and indent < 2 * MAX_DEPTH and len(text) < MAX_VALUES:
        return
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=Loader)):
        if count > 2 * MAX_VALUES:
            raise CaseError([_too_much(file, event.start_mark, _MANY)])
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise CaseError([_too_deep(file, event.start_mark)])
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1


_MANY = f"more than {MAX_VALUES:,} values"


def _bytes_before(text: str, error: yaml.reader.ReaderError) -> str:
    """The text in front of a character that YAML does not allow."""
    if isinstance(error.character, int):  # libyaml counts bytes
        return text.encode("utf-8", "replace")[: error.position].decode("utf-8", "ignore")
    return text[: error.position]


def _syntax_problem(error: yaml.YAMLError, text: str, file: str, has_tab: bool) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if "unexpected end of stream" in str(getattr(error, "problem", "")):
        mark = getattr(error, "context_mark", None) or mark  # where what never ends begins
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if isinstance(error, yaml.reader.ReaderError):
        before = _bytes_before(text, error)
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    reason = " ".join(
        str(part)
        for part in (getattr(error, "context", None), getattr(error, "problem", None))
        if part
    )
    if "maximum nesting depth" in reason:  # libyaml reads ahead of what it hands out
        return _too_deep(file, mark)
    if not reason:
        reason = str(error).splitlines()[0] if str(error) else "not parseable"
    if reason == "found undefined alias" and mark:  # libyaml does not say which
        alias = re.match(r"[^\s,\]}]*", text.splitlines()[line - 1][column - 1 :])
        reason += f" {alias[0]}" if alias else ""
    hint = "Check the indentation and the quotes on this line and the one before it."
    if has_tab:
        hint = "The file has a tab in its indentation; YAML wants spaces."
    if "single document" in reason:
        hint = "One case a file: remove the second '---'."
    return Problem("MN001", f"not YAML: {reason}", Place(file, line, column), hint)


class _Enough(Exception):
    """The file has been refused; what comes after it is not looked at."""


_MERGE = "tag:yaml.org,2002:merge"
_Pairs = dict[Any, tuple[Node, Node]]


class _Builder:
    """Walks a composed node tree; notes marks; counts what aliases and merge keys multiply."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[DataPath, tuple[int, int]] = {}
        self.spans: dict[DataPath, tuple[int, int, int, str]] = {}
        self.problems: list[Problem] = []
        self._count = 0
        self._text = 0
        self._scalars = SafeConstructor()
        self._open: set[int] = set()
        self._merging: set[int] = set()
        self._merged: dict[int, _Pairs] = {}

    def root(self, node: Node | None) -> Any:
        """The document's data; none, with a problem, when it is too much or without end."""
        try:
            return None if node is None else self.build(node, ())
        except _Enough:
            return None

    def build(self, node: Node, path: DataPath) -> Any:
        self._spend(node)
        if id(node) in self._open:
            self._refuse(node, "aliases contain themselves without end")
        self.marks.setdefault(path, _mark(node))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _PLAIN_TAGS:
            self._problem(node, f"a list or mapping of type {node.tag}", "Remove the tag.")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
        finally:
            self._open.discard(id(node))
        raise TypeError(type(node))

    def _spend(self, node: Node, values: int = 1) -> None:
        self._count += values
        self._text += len(node.value) if isinstance(node, ScalarNode) else 0
        if self._count > MAX_VALUES:
            self._refuse(node, f"aliases and merge keys multiply to {_MANY}")
        if self._text > MAX_TEXT:
            self._refuse(node, f"aliases multiply to more than {MAX_TEXT:,} characters")

    def _refuse(self, node: Node, message: str) -> None:
        self.problems.clear()
        self._problem(node, message, "Write out what is meant.")
        raise _Enough

    def _scalar(self, node: ScalarNode, path: DataPath) -> Any:
        self.spans[path] = (
            node.start_mark.line + 1,
            node.start_mark.column + 1,
            node.end_mark.line + 1,
            node.style or "",
        )
        return self._construct(node)

    def _construct(self, node: ScalarNode) -> Any:
        shown = cut(node.value, 80)
        if node.tag in _SHORT and len(node.value) > _MAX_DIGITS:
            self._problem(node, f"number {shown!r} is absurdly large for {node.tag}")
            return 0
        try:
            value = self._scalars.construct_object(node)
        except _UNCONSTRUCTABLE as error:
            self._scalars.recursive_objects.clear()
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            self._problem(node, f"value {shown!r} of type {cut(node.tag, 80)}: {cut(reason)}")
            return None
        if isinstance(value, (list, set, dict)):  # such as !!set on a word
            self._problem(node, f"value {shown!r} of type {node.tag}", "Remove the tag.")
            return None
        if isinstance(value, str) and "\0" in value:
            self._problem(node, f"value {shown!r} holds a NUL character", "No program can take it.")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            self._problem(node, f"number {shown!r} is absurdly large")
            return 0
        return value

    def _mapping(self, node: MappingNode, path: DataPath) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, (key_node, value_node) in self._pairs(node).items():
            inner = (*path, key)
            self.marks[inner] = _mark(key_node)
            result[key] = self.build(value_node, inner)
        return result

    def _pairs(self, node: MappingNode) -> _Pairs:
        """A mapping's keys, those it merges before its own; worked out once a mapping."""
        known = self._merged.get(id(node))
        if known is not None:
            return known
        own: _Pairs = {}
        merged: _Pairs = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for source in reversed(self._sources(value_node)):
                    self._spend(node, len(source))
                    merged.update(source)
                continue
            key = self._key(key_node)
            if key in own:
                self._problem(
                    key_node,
                    f"key {cut(repr(key), 80)} is given twice in one mapping",
                    "Keep one; YAML would silently keep the last.",
                )
            own[key] = (key_node, value_node)
        self._merged[id(node)] = pairs = {**merged, **own}
        return pairs

    def _sources(self, node: Node) -> list[_Pairs]:
        """The mappings that a ``<<`` names."""
        self._spend(node)
        if id(node) in self._merging or len(self._merging) > 2 * MAX_DEPTH:
            self._refuse(node, "merge keys contain themselves without end")
        self._merging.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return [self._pairs(node)]
            if isinstance(node, SequenceNode):
                return [pairs for item in node.value for pairs in self._sources(item)]
        finally:
            self._merging.discard(id(node))
        if not (isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null"):
            self._problem(node, "'<<' takes a mapping or a list of mappings")
        return []

    def _key(self, node: Node) -> Any:
        if not isinstance(node, ScalarNode):
            self._problem(node, "a key is a list or a mapping, expected a plain word")
            return "?"
        if node.tag == "tag:yaml.org,2002:value":
            return str(node.value)
        return self._construct(node)

    def _problem(self, node: Node, message: str, hint: str = "") -> None:
        line, column = _mark(node)
        self.problems.append(Problem("MN001", message, Place(self.file, line, column), hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Enough


#: Types whose constructors take long with long text.
_SHORT = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp", "bool"))


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
