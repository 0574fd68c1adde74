"""Flags of `vllm serve`: spelling, arity, types, repetition.

Source: the parser of vLLM 0.32 (``data/vllm_flags.json``).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator

from steps.core.errors import Severity
from steps.core.vllm import options
from steps.core.vllm.commandline import MAX_NUMBER, Option, integer, parse_json, whole
from steps.lint.fleet import Fleet
from steps.lint.registry import Finding, rule
from steps.lint.spelling import FALSE, shortened

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


def _glued(text: str) -> bool:
    """Whether a word holds a flag and something else."""
    if "--" not in text or text.lstrip()[:1] in "{[":
        return False
    words = text.split()
    if text != text.strip() and any(word.startswith("--") for word in words):
        return True
    return len(words) > 1 and any(
        word.startswith("--") and _known(word.split("=", 1)[0]) for word in words
    )


def _known(word: str) -> bool:
    name = f"--{word[2:].replace('_', '-')}".split(".", 1)[0]
    return name in options.options() or name in options.former()


#: No two options together are longer.
_LONGEST = 200


def _two_in_one(name: str) -> tuple[str, str] | None:
    """A flag with its value, or with another flag, glued on without a space."""
    table = options.options()
    for cut in range(min(len(name), _LONGEST) - 1, 4, -1):
        head, tail = name[:cut], name[cut:]
        if head in table and (
            tail.startswith("--") or (tail[0].isdigit() and table[head].nargs is None)
        ):
            return head, tail
    return None


@rule("MN101", ERROR, "Unknown flag")
def unknown_flag(fleet: Fleet) -> Iterator[Finding]:
    """`vllm serve` has no such option and exits with code 2. A warning when an older vLLM had it:
    the case may be meant for that one."""
    for server, option in fleet.options():
        if option.spec is not None or option.name == "-O" or _glued(option.spelled):
            continue
        name, place = option.spelled, server.command.place(option.at)
        if len(option.candidates) > 1 or (
            name.startswith("--") and _two_in_one(name) and not option.part
        ):
            continue
        if option.name in options.former():
            now = options.former()[option.name]
            hint = f"Write {now}." if now else "Remove it when the case runs on a newer vLLM."
            message = f"'{name}' is not in vLLM {options.version()}; older ones had it"
            yield Finding(message, place, hint, severity=WARNING)
            continue
        close = options.near(option.name)
        hint = f"Did you mean '{close}'?" if close else "Remove it, or check its spelling."
        yield Finding(
            f"unknown flag '{name}': vllm serve {options.version()} does not have it",
            place,
            hint,
        )


@rule("MN102", WARNING, "Abbreviated flag")
def abbreviated_flag(fleet: Fleet) -> Iterator[Finding]:
    """The parser accepts the beginning of an option as long as only one begins so: the next
    release may have two. An ambiguous one is an error already."""
    for server, option in fleet.options():
        place = server.command.place(option.at)
        if option.abbreviation and option.spec is not None:
            full = option.candidates[0] if option.candidates else option.name
            yield Finding(
                f"'{option.spelled}' is short for '{full}'", place, f"Write '{full}' in full."
            )
        elif len(option.candidates) > 1:
            names = ", ".join(option.candidates[:4])
            yield Finding(
                f"'{option.spelled}' is ambiguous: it could be {names}",
                place,
                "Write the flag in full.",
                severity=ERROR,
            )


@rule("MN103", ERROR, "Arguments glued together")
def glued_arguments(fleet: Fleet) -> Iterator[Finding]:
    """One word of the command holds a flag and something else, so that the parser sees neither.
    In a `server_cmd_template` each flag and each value is a list item of its own. In a folded
    (`>`) command a backslash at the end of a line glues the next word to a space."""
    for server in fleet.commands:
        command = server.command
        for at, word in enumerate(command.argv):
            if at in (0, command.model_at):
                continue
            place = command.place(at)
            if _glued(word):
                if word.startswith((" ", "\n")):
                    hint = "Remove the backslash at the end of the line before it."
                else:
                    hint = "Make them separate words (separate list items in a template)."
                yield Finding(f"glued into one argument: {shortened(word)!r}", place, hint)
                continue
            name = word.split("=", 1)[0]
            if word.startswith("--") and not _known(name):
                pair = _two_in_one(f"--{name[2:].replace('_', '-')}")
                if pair:
                    yield Finding(
                        f"'{shortened(word)}' is '{pair[0]}' and '{pair[1]}' without a space",
                        place,
                        "Put a space between them.",
                    )
            elif (
                "--" in word
                and re.match(r"^[\w./:]+--[a-z]", word)
                and _known(word[word.index("--") :])
            ):
                yield Finding(
                    f"glued into one argument: {shortened(word)!r}",
                    place,
                    "Put a space before the flag.",
                )


def _type_problem(kind: str | None, value: str) -> str:
    """What a value should have been; empty when it is."""
    if kind == "int" and not re.fullmatch(r"\s*[+-]?\d[\d_]*\s*", value[:80]):
        return "a whole number"
    if kind == "int" and integer(value) is None:
        return "a whole number of 64 bits"
    if kind == "float":
        try:
            number = float(value)
        except ValueError:
            return "a number"
        return "" if math.isfinite(number) else "a finite number"
    if kind in ("human-int", "human-int-or-auto") and whole(value) is None:
        if kind == "human-int-or-auto" and value in ("auto", "-1"):
            return ""
        return "a whole number, such as 8192 or 128K"
    return ""


def _size_problem(name: str, value: str) -> str:
    """What a size, a rank or a port of the fleet should have been; empty when it is."""
    of_fleet = name.endswith(("parallel-size", "-size-local", "-rank", "-port", "nnodes"))
    if of_fleet and abs(integer(value) or 0) > MAX_NUMBER:
        return f"a whole number of at most {MAX_NUMBER:,}"
    return ""


#: Values that vllm-ascend adds to an option's choices.
_PLUGIN = {"--kv-cache-dtype": ("int8",)}


@rule("MN104", ERROR, "Value of the wrong type")
def wrong_type(fleet: Fleet) -> Iterator[Finding]:
    """The option takes a number, or one of a few words, and the value is something else: exit
    code 2 at start. A word that is not near any allowed one is a warning: releases differ."""
    for server, option in fleet.options():
        spec = option.spec
        if spec is None or option.part or not option.values:
            continue
        for number, value in enumerate(option.values):
            if "$" in value or _glued(value):
                continue
            place = server.command.place(option.value_at + number)
            expected = _type_problem(spec.type, value) or _size_problem(spec.name, value)
            if expected:
                yield Finding(
                    f"{spec.name}: found {shortened(value)!r}, expected {expected}", place
                )
            elif spec.choices and value not in (*spec.choices, *_PLUGIN.get(spec.name, ())):
                close = [
                    word
                    for word in difflib.get_close_matches(value[:60], spec.choices, 1, 0.75)
                    if word not in value and value not in word
                ]
                later = bool(close) and _letters(close[0]) == _letters(value)
                yield Finding(
                    f"{spec.name}: found {shortened(value)!r}, expected one of "
                    f"{', '.join(spec.choices[:12])}",
                    place,
                    f"Did you mean '{close[0]}'?" if close else "",
                    severity=ERROR if close and not later else WARNING,
                )


def _letters(word: str) -> str:
    """Without digits, in which the names of two releases differ."""
    return re.sub(r"\d+", "", word)


@rule("MN105", ERROR, "Value missing")
def missing_value(fleet: Fleet) -> Iterator[Finding]:
    """The option takes a value, and the next word is another option or the end."""
    for server, option in fleet.options():
        if option.missing and option.spec is not None:
            yield Finding(
                f"'{option.spelled}' has no value",
                server.command.place(option.at),
                "Give it one, or remove the flag.",
            )


@rule("MN106", ERROR, "Word that belongs to no flag")
def stray_word(fleet: Fleet) -> Iterator[Finding]:
    """`vllm serve` takes one bare word, the model, wherever it stands; any other is
    `unrecognized arguments`, exit code 2. Switches take no value: `--flag` or `--no-flag`."""
    for server in fleet.commands:
        command = server.command
        for option in command.options:
            if option.extra and not _glued(option.extra):
                negative = option.extra.lower() in FALSE
                yield Finding(
                    f"'{option.spelled}' takes no value, found '={option.extra}'",
                    command.place(option.at),
                    f"Write {_negated(option.name) if negative else option.name}.",
                )
        placed = {option.at: option for option in command.options}
        for at in command.stray:
            word = command.argv[at]
            if _glued(word) or _glued(command.argv[at - 1]) or re.match(r"^[\w./:]+--[a-z]", word):
                continue
            before = placed.get(at - 1)
            hint = "Quote it together with its flag's value, or remove it."
            if before is not None and before.spec is not None and before.spec.nargs == 0:
                hint = f"'{before.name}' takes no value: remove '{word}'."
                if word.lower() in FALSE:
                    hint = f"Write {_negated(before.name)}."
            elif f"--{word}" in options.options():
                hint = f"Did you mean '--{word}'?"
            if not word:
                hint = "It is empty: remove the quotes."
            elif word.startswith("#"):
                hint = "There are no comments inside of a command: move it above the command."
            elif word[0] in "\u2010\u2011\u2012\u2013\u2014\u2212":
                hint = f"It begins with {word[0]!r}, a dash of typography: write '--'."
            elif set(word) & set("\u2018\u2019\u201c\u201d"):
                hint = "It has quotes of typography: write ' or \"."
            elif word in ("\\", "&", "&&", "|", ";", ">", "2>&1"):
                hint = "No shell runs the command: remove it."
            yield Finding(f"'{shortened(word)}' belongs to no flag", command.place(at), hint)


def _negated(name: str) -> str:
    opposite = f"--no-{name[2:]}"
    return opposite if opposite in options.options() else f"nothing instead of {name}"


@rule("MN108", WARNING, "Flag given twice")
def given_twice(fleet: Fleet) -> Iterator[Finding]:
    """The parser takes the last one and only prints a warning, so the case runs; with different
    values one of the two is not what runs."""
    for server in fleet.commands:
        command = server.command
        seen: dict[tuple[str, str], Option] = {}
        for option in command.options:
            if option.spec is not None and option.spec.kind == "append":
                continue
            if option.spec is None and option.name not in options.former():
                continue
            key = (option.name, option.part)
            before = seen.get(key)
            seen[key] = option
            if before is None:
                continue
            first = before.values or (_switch(before),)
            second = option.values or (_switch(option),)
            same = first == second or _same_json(first, second)
            what = (
                f"with the same value '{shortened(' '.join(first))}'"
                if same
                else f"as '{shortened(' '.join(first))}' and as '{shortened(' '.join(second))}'"
            )
            yield Finding(
                f"'{option.name}' is given twice, {what}",
                command.place(option.at),
                "Keep one."
                if same
                else f"Keep one; vLLM takes the last, '{shortened(' '.join(second))}'.",
                (command.place(before.at),),
            )


def _switch(option: Option) -> str:
    return "off" if option.spelled.startswith("--no-") else "on"


def _same_json(first: Iterable[str], second: Iterable[str]) -> bool:
    try:
        return [parse_json(text) for text in first] == [parse_json(text) for text in second]
    except ValueError:
        return False
