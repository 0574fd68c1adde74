"""Repair what can be repaired safely in cases, and show what was changed.

Enters: case files. Leaves: the same files with a few words changed; comments
and layout stay. Touches: writes those files (not with ``--dry-run``), prints a
diff.

    python -m steps.fix configs/mine.yaml
    python -m steps.fix --dry-run configs/*.yaml

Repaired: abbreviated flags, a flag given twice with the same value, arguments
glued together, values given to switches, Python's True, False, None in JSON.
Nothing is repaired that could be meant in two ways.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.core import door, foreign
from steps.core.case.build import build_case, cases_in
from steps.core.case.case import Case
from steps.core.case.source import parse_yaml, read_text
from steps.core.errors import CaseError, Exit, Place
from steps.core.plan.resolver import examine
from steps.core.redaction import here
from steps.core.vllm import options
from steps.core.vllm.commandline import Option, parse_json
from steps.lint.fleet import Fleet, Server, build
from steps.validate import default_paths, neutral_cluster

_ROUNDS = 5
_JSON = ("json", "json-or-str")
_SWITCH_ON = ("true", "1", "yes", "on")
_SWITCH_OFF = ("false", "0", "no", "off")


@dataclass(frozen=True)
class Edit:
    """Replace ``old``, which stands at ``place``, by ``new``; or drop its whole line."""

    rule: str
    place: Place
    old: str
    new: str = ""
    whole_line: bool = False


Fixer = Callable[[Fleet], Iterator[Edit]]


def _in_full(fleet: Fleet) -> Iterator[Edit]:
    """MN102: an abbreviated flag in full."""
    for server, option in _options(fleet):
        if option.abbreviation and option.spec is not None and not option.part:
            word = server.command.argv[option.at].split("=", 1)[0]
            targets = [n for n in options.abbreviated(option.spelled) if n.startswith("--no-")]
            full = targets[0] if option.spelled.startswith("--no-") and targets else option.name
            yield Edit("MN102", server.command.place(option.at), word, full)


def _once(fleet: Fleet) -> Iterator[Edit]:
    """MN108: a flag that is there twice with the same value stays once."""
    for server in fleet.commands:
        seen: dict[tuple[str, str], Option] = {}
        for option in server.command.options:
            if option.spec is None or option.spec.kind == "append" or option.part:
                continue
            key = (option.name, option.part)
            before = seen.setdefault(key, option)
            same = before.spelled == option.spelled and before.values == option.values
            if before is not option and same:
                yield from _without(fleet, server, option)


def _without(fleet: Fleet, server: Server, option: Option) -> Iterator[Edit]:
    words = [option.at] + [
        option.value_at + n for n in range(len(option.values)) if option.value_at > option.at
    ]
    places = [server.command.place(at) for at in words]
    texts = [server.command.argv[at] for at in words]
    if fleet.routing:
        for place, text in zip(places, texts, strict=True):
            yield Edit("MN108", place, text, whole_line=True)
    elif len({place.line for place in places}) == 1:
        line = server.lines[places[0].line - 1]
        start, end = places[0].column - 1, places[-1].column - 1 + len(texts[-1])
        yield Edit("MN108", places[0], line[start:end])


def _apart(fleet: Fleet) -> Iterator[Edit]:
    """MN103: a flag and its value in one list item; a backslash at the end of a folded line."""
    for server in fleet.commands:
        for at, word in enumerate(server.command.argv):
            place = server.command.place(at)
            line = server.lines[place.line - 1] if place.line <= len(server.lines) else ""
            if fleet.routing:
                match = re.match(r"^(\s*- )(--[\w-]+)[ =]+(\S+)\s*$", line)
                if match and word.split() == [match[2], match[3]] and _known(match[2]):
                    new = f"{match[2]}\n{match[1]}{_as_item(match[3])}"
                    yield Edit("MN103", place, line[place.column - 1 :], _item(place, line, new))
            elif word.startswith(" ") and line.rstrip().endswith("\\"):
                column = line.rstrip().rindex("\\")
                start = len(line[:column].rstrip())
                yield Edit("MN103", Place(place.file, place.line, start + 1), line[start:])


def _item(place: Place, line: str, new: str) -> str:
    """The new text from the item's mark on, whether that is the dash or the word."""
    return f"- {new}" if line[place.column - 1 :].startswith("- ") else new


def _as_item(value: str) -> str:
    return f'"{value}"' if re.fullmatch(r"[\d.]+|true|false|yes|no|on|off|null", value) else value


def _known(name: str) -> bool:
    return f"--{name[2:].replace('_', '-')}" in options.options()


def _bare_switch(fleet: Fleet) -> Iterator[Edit]:
    """MN106: ``--flag true`` to ``--flag``, ``--flag false`` to ``--no-flag``."""
    for server in fleet.commands:
        command = server.command
        switches = {o.at: o for o in command.options if o.spec is not None and o.spec.nargs == 0}
        for at in command.stray:
            option = switches.get(at - 1)
            value = command.argv[at].lower()
            if option is None or option.spelled.startswith("--no-"):
                continue
            opposite = f"--no-{option.name[2:]}"
            off = value in _SWITCH_OFF and opposite in options.options()
            if not off and value not in _SWITCH_ON:
                continue
            flag, word = command.argv[option.at], command.argv[at]
            right = opposite if off else flag
            if fleet.routing:
                yield Edit("MN106", command.place(option.at), flag, right)
                yield Edit("MN106", command.place(at), word, whole_line=True)
            elif command.place(at).line == command.place(option.at).line:
                line = server.lines[command.place(at).line - 1]
                start = command.place(option.at).column - 1
                end = command.place(at).column - 1 + len(word)
                yield Edit("MN106", command.place(option.at), line[start:end], right)


def _json_words(fleet: Fleet) -> Iterator[Edit]:
    """MN110: ``True``, ``False`` and ``None`` where JSON has ``true``, ``false``, ``null``."""
    words = {"True": "true", "False": "false", "None": "null"}
    pattern = re.compile(r"(?<=[:\[,{\s])(True|False|None)(?=\s*[,}\]])")
    for server, option in _options(fleet):
        if option.spec is None or option.spec.type not in _JSON or not option.values:
            continue
        try:
            parse_json(option.value)
            continue
        except ValueError:
            pass
        try:
            parse_json(pattern.sub(lambda m: words[m[1]], option.value))
        except ValueError:
            continue
        first = server.command.place(option.value_at)
        behind = option.value_at + 1
        last = (
            server.command.places[behind].line
            if behind < len(server.command.places)
            else first.line + option.value.count(" ")
        )
        for row in range(first.line, min(last, len(server.lines)) + 1):
            column = first.column - 1 if row == first.line else 0
            stop = server.command.place(behind).column - 1 if row == last else 10**6
            for match in pattern.finditer(server.lines[row - 1], column):
                if match.start() < stop or row < last:
                    place = Place(first.file, row, match.start() + 1)
                    yield Edit("MN110", place, match[1], words[match[1]])


#: Rule -> what repairs it.
FIXERS: dict[str, Fixer] = {
    "MN102": _in_full,
    "MN103": _apart,
    "MN106": _bare_switch,
    "MN108": _once,
    "MN110": _json_words,
}


def _options(fleet: Fleet) -> Iterator[tuple[Server, Option]]:
    for server in fleet.commands:
        for option in server.command.options:
            yield server, option


def fixed(text: str, name: str = "case.yaml") -> tuple[str, list[str]]:
    """The repaired text of a case, and the rules of which something was repaired.

    Raises:
        CaseError: the case cannot be read at all.
    """
    done: list[str] = []
    for _ in range(_ROUNDS):
        edits = [
            edit
            for source in cases_in(parse_yaml(text, name)).values()
            for edit in _edits(build_case(source))
        ]
        text, applied = _apply(text, edits)
        if not applied:
            break
        done += applied
    return text, done


def _edits(case: Case) -> Iterator[Edit]:
    plan, _problems = examine(case, neutral_cluster(case.num_nodes))
    fleet = build(case, plan)
    for fixer in FIXERS.values():
        yield from fixer(fleet)


def _apply(text: str, edits: Iterable[Edit]) -> tuple[str, list[str]]:
    """Make the edits, the last one first; those that no longer fit, or touch another, wait."""
    lines = text.split("\n")
    applied: list[str] = []
    touched: set[int] = set()
    unique = dict.fromkeys(edits)
    for edit in sorted(unique, key=lambda e: (-e.place.line, -e.place.column)):
        row, column = edit.place.line - 1, edit.place.column - 1
        if row in touched or row >= len(lines):
            continue
        line = lines[row]
        spot = line.find(edit.old, column)
        if not edit.old or edit.old == edit.new or spot < 0 or spot - column > 3:
            continue
        touched.add(row)
        applied.append(edit.rule)
        if edit.whole_line:
            lines[row : row + 1] = []
            continue
        end = "\r" if line.endswith("\r") else ""
        rest = (line[:spot] + edit.new + line[spot + len(edit.old) :]).rstrip()
        if not edit.new:
            rest = re.sub(r"(?<=\S)  +", " ", rest)
        lines[row : row + 1] = [rest + end] if rest.strip() else []
    return "\n".join(lines), applied


def run(files: Sequence[str] = (), *, dry_run: bool = False) -> int:
    """Repair ``files`` (default: every case under configs) and print the diff.

    Returns:
        0; 2 when a file cannot be read as a case.
    """
    failed = False
    repaired = 0
    for path in [Path(name) for name in files] or default_paths():
        try:
            before = read_text(path)
            after, rules = fixed(before, str(path))
        except CaseError as error:
            print(f"{path}: cannot be repaired before it can be read:\n{error}", file=sys.stderr)
            failed = True
            continue
        if after == before:
            continue
        repaired += 1
        for line in difflib.unified_diff(
            before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""
        ):
            print(foreign.line(here().unparsed(line)))
        print(f"{path}: {', '.join(f'{rules.count(r)} x {r}' for r in sorted(set(rules)))}\n")
        if not dry_run:
            path.write_text(after, encoding="utf-8", newline="")
    if not repaired and not failed:
        print("nothing to repair")
    return Exit.USAGE if failed else Exit.PASS


def _command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="cases (default: all of configs)")
    parser.add_argument("--dry-run", action="store_true", help="only show the diff")


main = door.Verb(
    "python -m steps.fix",
    f"Repair what can be repaired safely in cases; prints a diff. Rules: {', '.join(FIXERS)}.",
    _command,
    lambda args: run(args.files, dry_run=args.dry_run),
)


if __name__ == "__main__":
    sys.exit(main())
