"""Upstream's matrix files as ours: a file to review, made once.

Enters: ``nightly_config.yaml`` and ``weekly_config.yaml`` of the upstream harness, perhaps its
checkout. Leaves: the text of a ``ci/nightly.yaml``, or every problem with its line. Touches: reads
those files, and looks for the cases they name.

What upstream says and ours has no place for stands beside it as a comment: the runner's label
(its number of cards), and entries that are no case files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from steps.core.case import check
from steps.core.case.numbers import dumps
from steps.core.case.source import DataPath, Source, load_yaml
from steps.core.errors import CaseError, Problem, UsageError, sort_problems

SOCS = ("a2", "a3", "a3-560t", "a5", "310p")
#: Section -> jobs that upstream starts at once.
SECTIONS = {"multi_node": 2, "double_node": 4, "multi_card": 9, "single_node": 9}
#: The same, where a SoC differs.
_AT_ONCE = {("a2", "multi_node"): 3}
#: Sections of tests that are no case files.
_OTHER = ("accuracy",)
#: Minutes upstream gives a job, where they are more than ours.
_MINUTES = {"weekly": 600}
_TEXT = {"type": "string", "empty": False}


@dataclass
class _Taken:
    """A SoC's entries as they come in, each with what is to be said of it."""

    entries: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    parallel: int = max(SECTIONS.values())


class _Importer:
    def __init__(self, checkout: Path | None, name: str) -> None:
        self.checkout = checkout
        self.form = {"type": "dict", "allow_unknown": True, "schema": _form(name)}
        self.socs: dict[str, _Taken] = {}
        self.names: dict[str, str] = {}
        self.problems: list[Problem] = []

    def read(self, source: Source, cadence: str) -> None:
        """Take one file in."""
        for soc, sections in self._mapping(source, ()).items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", str(soc)):
                self._problem(source, (soc,), f"found {soc!r}, expected a SoC such as a3")
                continue
            self._sections(source, (soc,), sections, str(soc), cadence)

    def _sections(
        self, source: Source, at: DataPath, data: Any, soc: str, cadence: str, note: str = ""
    ) -> None:
        taken = self.socs.setdefault(soc, _Taken())
        for name, body in self._mapping(source, at, data).items():
            here = (*at, name)
            if name in SECTIONS:
                self._section(source, here, body, soc, cadence, note)
            elif name in _OTHER:
                groups = self._mapping(source, here, body).values()
                taken.left += [f"{name}: {_names(group)}" for group in groups]
            elif name in SOCS:  # a SoC that is indented too far: upstream never runs it
                why = f"upstream never runs it: it stands under {soc}"
                self._sections(source, here, body, str(name), cadence, why)
            else:
                known = ", ".join((*SECTIONS, *_OTHER))
                self._problem(source, here, f"found section {name!r}, expected one of {known}")

    def _section(
        self, source: Source, at: DataPath, body: Any, soc: str, cadence: str, note: str
    ) -> None:
        section, listed = str(at[-1]), (*at, "test_config")
        content = self._mapping(source, at, body)
        schema = {"test_config": {"type": "list", "nullable": True, "schema": self.form}}
        problems = list(check.told(schema, content))
        for path, text in problems:
            found = _at(content, path)
            said = "" if found is None else f", found {dumps(found)[:80]}"
            self._problem(source, (*at, *path), f"{text}{said}")
        given = () if problems else content.get("test_config") or ()
        taken = self.socs[soc]
        for index, raw in enumerate(given):
            if "config_file_path" not in raw:
                taken.left.append(f"{section}: {raw['name']} ({raw.get('tests', 'no file')})")
                continue
            if section in ("multi_node", "double_node") and "size" not in raw:
                self._problem(source, (*listed, index), f"{raw['name']} has no size")
                continue
            at_once = _AT_ONCE.get((soc, section), SECTIONS[section])
            taken.parallel = min(taken.parallel, at_once)
            taken.entries.append(self._entry(raw, soc, cadence, note))

    def _entry(
        self, raw: Mapping[str, Any], soc: str, cadence: str, note: str
    ) -> tuple[dict[str, Any], list[str]]:
        notes = [note] if note else []
        name = raw["name"]
        other = f"-{cadence}" if self.names.get(name) == soc else f"-{soc}"
        for tail in ("", other, f"-{soc}-{cadence}"):
            if f"{name}{tail}" not in self.names:
                break
        if tail:
            notes.append(f"upstream has another entry named {name}, of {self.names[name]}")
        name = f"{name}{tail}"
        self.names[name] = soc
        case, doubt = self._case(raw)
        notes += [doubt] if doubt else []
        notes += [f"upstream's runner: {raw['os']}"] if "os" in raw else []
        minutes = raw.get("testcase_timeout") or _MINUTES.get(cadence)
        return {
            "name": name,
            "case": case,
            "size": raw.get("size", 1),
            "profile": soc,
            "runner": ["self-hosted", "linux", f"npu-{soc}"],
            "cadence": cadence,
            "owner": "upstream",
            **({"minutes": minutes} if minutes else {}),
        }, notes

    def _case(self, raw: Mapping[str, Any]) -> tuple[str, str]:
        """The case file's path, and what is doubtful about it."""
        base, name = raw.get("config_base_path"), raw["config_file_path"]
        if self.checkout is None:
            return (f"{base}/{name}", "") if base else (name, "upstream does not say its folder")
        if base:
            path = self.checkout / base / name
            there = os.path.isfile(path)  # noqa: PTH113 (it takes any text)
            return path.as_posix(), "" if there else "no such file in the checkout"
        found = [path for path in sorted(self.checkout.rglob("*.yaml")) if path.name == name]
        if len(found) == 1:
            return found[0].as_posix(), ""
        return name, f"{len(found) or 'no'} files of this name in the checkout"

    def _mapping(self, source: Source, at: DataPath, data: Any = ...) -> Mapping[Any, Any]:
        value = source.data if data is ... else data
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self._problem(source, at, "expected a mapping")
        return {}

    def _problem(self, source: Source, at: DataPath, text: str) -> None:
        where = ".".join(map(str, at))
        self.problems.append(Problem("matrix", f"{where}: {text}".lstrip(": "), source.place(*at)))


def _form(name: str) -> dict[str, Any]:
    return {
        "name": {**_TEXT, "regex": name, "required": True},
        "config_file_path": _TEXT,
        "config_base_path": _TEXT,
        "os": _TEXT,
        "tests": _TEXT,
        "size": {"type": "integer", "min": 1},
        "testcase_timeout": {"type": "integer", "min": 1},
    }


def _at(data: Any, path: DataPath) -> Any:
    """What stands at a path; None where that is nothing."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data if isinstance(data, (str, int, float)) else None


def _names(group: Any) -> str:
    entries = group if isinstance(group, list) else [group]
    return ", ".join(
        str(entry.get("name") if isinstance(entry, dict) else entry) for entry in entries
    )


def ours(
    files: Sequence[Path], name: str, cadences: Sequence[str], checkout: Path | None = None
) -> str:
    """The text of our matrix file.

    Args:
        name: a regular expression of names that ours can have.
        cadences: the first is that of files whose names do not tell theirs.
        checkout: upstream's checkout; without it cases are named as upstream names them.

    Raises:
        CaseError: every problem of the files.
        UsageError: nobody says the cadence of a file.
    """
    importer = _Importer(checkout, name)
    for file in files:
        told = next((word for word in ("nightly", "weekly") if word in file.name), "")
        cadence = cadences[0] if cadences else told
        if not cadence:
            raise UsageError(f"{file}: its name has neither nightly nor weekly", "Say --cadence.")
        importer.read(load_yaml(file), cadence)
    if importer.problems:
        raise CaseError(sort_problems(importer.problems))
    words = " ".join(file.name for file in files)
    taken = {soc: one for soc, one in importer.socs.items() if one.entries}
    head = f"Made from upstream's {words}. Review it: owners, runners, what is not taken."
    parallel = {"max_parallel": {soc: one.parallel for soc, one in taken.items()}}
    return "\n".join([_comment(head), yaml.safe_dump(parallel, sort_keys=False), *_text(taken)])


def _text(socs: Mapping[str, _Taken]) -> Iterator[str]:
    for soc, taken in socs.items():
        yield f"{yaml.safe_dump(soc).splitlines()[0]}:"
        for entry, notes in sorted(taken.entries, key=lambda each: -each[0]["size"]):
            yield from (f"  {_comment(note)}" for note in notes)
            text = yaml.safe_dump([entry], sort_keys=False, default_flow_style=None, width=1000)
            yield "".join(f"  {line}\n" for line in text.splitlines())
        yield from (f"  {_comment(f'not taken, no case file: {text}')}" for text in taken.left)


def _comment(text: str) -> str:
    """A comment of one line, whatever upstream's text has in it."""
    return f"# {dumps(text)[1:-1]}"
