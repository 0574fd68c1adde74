"""The check of a file against its form: a case, or what other nouns add to ``FORMS``.

Enters: a parsed :class:`Source`. Leaves: every problem its form has, with
file, line, found, expected. Touches nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

from cerberus import TypeDefinition, Validator
from cerberus.errors import UNKNOWN_FIELD, ErrorTree, ValidationError

from steps.core.case import fields
from steps.core.case.asked import BENCHMARK, Field
from steps.core.case.fields import FIELDS, dialect_of, is_several, known_keys
from steps.core.case.parts import balancing
from steps.core.case.source import DataPath, Source
from steps.core.errors import MAX_PROBLEMS, Problem

#: Numbers of the routing dialect that upstream reads with ``int``, so that they may be quoted.
_QUOTABLE = ("num_nodes", "npu_per_node", "config", "routing", "kv_pool")
#: A line that goes on so far behind a key holds more than an anchor.
_LONG = 300
#: No key that a person misspelled is longer.
_LONGEST_KEY = 60
#: Ends of fields that ask for a gate, and of others that later upstream harnesses have near ours.
_GATES, _LATER = ("_threshold", "_baseline"), ("_path", "_conf", "_args", "_kwargs")


def plain_numbers(source: Source) -> Source:
    """The case with quoted whole numbers as numbers, where upstream takes both."""
    data = source.data
    if not isinstance(data, dict) or dialect_of(source) != "routing":
        return source
    quotable = {key: value for key, value in data.items() if key in _QUOTABLE}
    made = {**data, **_plain_numbers(quotable, {"schema": fields.ROUTING})}
    return dataclasses.replace(source, data=made)


def _plain_numbers(value: Any, rules: Field) -> Any:
    inner = rules.get("schema")
    if isinstance(value, dict) and isinstance(inner, dict):
        return {key: _plain_numbers(item, inner.get(key) or {}) for key, item in value.items()}
    if isinstance(value, list) and isinstance(inner, dict):
        return [_plain_numbers(item, inner) for item in value]
    whole = rules.get("type") == "strict_integer" and isinstance(value, str)
    return int(value) if whole and re.fullmatch(r"\s*[0-9]{1,9}\s*", value) else value


class _Unsorted(list[ValidationError]):
    """Errors in the order in which they are found: cerberus sorts all of them at each new one."""

    def sort(self, **_: Any) -> None:
        """Leave them."""


class _NoTree(ErrorTree):  # type: ignore[misc]
    """No tree of errors: nobody asks for it, and it sorts too."""

    def add(self, error: ValidationError) -> None:
        """Forget it."""


class _CaseValidator(Validator):  # type: ignore[misc]
    """Cerberus with the number types that authors really write."""

    _errors: Any
    _valid_schemas = fields.Valid()
    types_mapping: ClassVar[dict[str, Any]] = {
        **{name: kind for name, kind in Validator.types_mapping.items() if name != "number"},
        "strict_integer": TypeDefinition("strict_integer", (int,), (bool,)),
    }

    def _error(self, *args: Any) -> None:
        if not isinstance(self._errors, _Unsorted):
            self._errors = _Unsorted(self._errors)
            self.document_error_tree, self.schema_error_tree = _NoTree(), _NoTree()
        super()._error(*args)

    def _validate_type_number(self, value: Any) -> bool:
        """A number that JSON can hold."""
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e30
        )

    def _validate_type_numeric_string(self, value: Any) -> bool:
        return isinstance(value, str) and bool(
            re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]+)?", value.strip())
        )

    def _validate_type_whole_string(self, value: Any) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(r"[0-9]{1,18}", value.strip()))

    def _validate_type_switch_string(self, value: Any) -> bool:
        return isinstance(value, str) and value.lower() in ("true", "false")

    def _validate_min_value(self, minimum: float, field: str, value: Any) -> None:
        """{'type': 'number'}"""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return
        if not number >= minimum or number == float("inf"):
            self._error(field, f"expected a number of at least {minimum:g}")


@cache
def _validator(dialect: str) -> _CaseValidator:
    return _CaseValidator(fields.FORMS[dialect])


def check(source: Source) -> list[Problem]:
    """Every problem of the case's form.

    Returns:
        Problems MN003 (form of the document) to MN009, unsorted.
    """
    data = source.data
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {_kind(data)}"
        return [
            Problem(
                "MN003",
                f"found {found} at the top, expected a mapping with model, num_nodes, ...",
                source.place(),
                "See configs/quickstart.yaml for the form of a case.",
            )
        ]
    dialect = dialect_of(source)
    if dialect is None:
        keys = [str(key)[:30] for key in list(data)[:1000]]
        known = {
            key: name
            for name in ("deployment", "test_cases")
            for key in difflib.get_close_matches(name, keys, 1, 0.75)
        }
        close = list(known)
        wrong = f"found {close[0]!r}; " if close else ""
        return [
            Problem(
                "MN003",
                f"{wrong}neither 'deployment' nor 'routing' is there, expected one of them",
                source.place(*close) if close else source.place(),
                f"Did you mean {known[close[0]]!r} for {close[0]!r}?"
                if close
                else "A case lists its nodes under 'deployment', or under 'config' and "
                "'templates' with 'routing'; a file of cases with one node has 'test_cases'.",
            )
        ]
    return [*_check_known(source, data, dialect), *balancing.check(source, dialect)]


def check_form(source: Source, form: str) -> list[Problem]:
    """Every problem of a file that is no case, such as a cluster profile.

    Args:
        form: a key of ``FORMS``.
    """
    if not isinstance(source.data, dict):
        found = "nothing" if source.data is None else f"a {_kind(source.data)}"
        message = f"found {found} at the top, expected a mapping"
        return [Problem("MN003", message, source.place(), f"A {form} is a mapping of keys.")]
    return list(_check_known(source, source.data, form))


def told(schema: Mapping[Any, Any], data: Any) -> Iterator[tuple[DataPath, str]]:
    """Where data is not what a schema says, in cerberus's own words: for files of CI's own."""
    validator = Validator(schema)
    validator.validate(data, normalize=False)
    return _told(validator.errors, ())


def _told(errors: Mapping[Any, Any], path: DataPath) -> Iterator[tuple[DataPath, str]]:
    for key, found in errors.items():
        for item in found:
            if isinstance(item, dict):
                yield from _told(item, (*path, key))
            else:
                yield (*path, key), str(item)


def _check_known(source: Source, data: Mapping[Any, Any], dialect: str) -> Iterator[Problem]:
    holders = {
        key for key in data if key not in fields.FORMS[dialect] and _holds_anchor(source, key)
    }
    odd: list[Problem] = []
    kept = {key: value for key, value in data.items() if key not in holders}
    document = _text_keys(source, kept, (), odd)
    yield from odd
    validator = _validator(dialect)
    validator.validate(_without_the_obvious(document), normalize=False)
    seen: set[tuple[DataPath, str]] = set()
    found = [(tuple(error.document_path), error) for error in _flatten(validator._errors)]
    found.sort(key=lambda entry: (_position(source, entry[0]), _missing(entry[1])))
    for at, (path, error) in enumerate(found):
        if at > 2 * MAX_PROBLEMS:
            # Nobody is shown so many: what is left is only counted.
            yield source.problem("MN007", "is wrong", path)
            continue
        if error.rule is None and not _is_mistake(source, dialect, path):
            continue
        problem = _explain(source, path, error, dialect)
        if (path, problem.message) not in seen:
            seen.add((path, problem.message))
            yield problem


def _position(source: Source, path: DataPath) -> tuple[int, int]:
    place = source.place(*path)
    return place.line, place.column


def _missing(error: ValidationError) -> str:
    """The key that is missing: cerberus tells these in the order of a set."""
    return str(error.document_path[-1]) if error.rule == "required" else ""


def _without_the_obvious(document: Mapping[Any, Any]) -> dict[Any, Any]:
    """The document with its many environments and argument lists left out where they are right.

    They are most of a case, and cerberus takes its time with each of their values.
    """
    light = {
        key: {} if str(key).startswith("env_") and _is_environment(value) else value
        for key, value in document.items()
    }
    if _is_environment(light.get("envs")):
        light["envs"] = {}
    for key in ("server_cmd", "server_cmd_extra"):
        if _are_words(light.get(key)):
            light[key] = []
    for key in ("deployment", "templates"):
        entries = light.get(key)
        if isinstance(entries, list):
            light[key] = [_light_entry(entry) for entry in entries]
    return light


def _light_entry(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    light = dict(entry)
    if _is_environment(entry.get("envs")):
        light["envs"] = {}
    if _are_words(entry.get("server_cmd_template")):
        light["server_cmd_template"] = []
    return light


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, (str, int, float)) for word in value)


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and _NAME.match(name)
        and (text is None or isinstance(text, (str, int, float)))
        for name, text in value.items()
    )


_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def _text_keys(source: Source, value: Any, path: DataPath, odd: list[Problem]) -> Any:
    """``value`` without keys that are no text; a problem for each of them."""
    if isinstance(value, list):
        return [_text_keys(source, inner, (*path, at), odd) for at, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        where = (*path, key)
        if isinstance(key, str):
            kept[key] = _text_keys(source, inner, where, odd)
            continue
        message = f"found the key {_show(key)}, expected text"
        odd.append(source.problem("MN005", message, where, "Quote it, or remove it."))
    return kept


def _flatten(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    for error in errors:
        if error.is_group_error and error.child_errors:
            yield from _flatten(error.child_errors)
        else:
            yield error


def _explain(source: Source, path: DataPath, error: ValidationError, dialect: str) -> Problem:
    rule = error.rule
    doc = fields.doc(dialect, path)
    if rule == "required":
        parent = ".".join(str(part) for part in path[:-1]) or "the case"
        return Problem(
            "MN004",
            f"{parent}: required key '{path[-1]}' is missing",
            source.place(*path[:-1]),
            doc,
            field=".".join(str(part) for part in path),
        )
    if error.code == UNKNOWN_FIELD.code:
        hint = _suggest(source, dialect, path)
        return source.problem("MN005", "unknown key", path, hint)
    if path[:-1] == ("benchmarks",) and path[-1] in BENCHMARK:
        hint = f"'{path[-1]}' belongs under the name of a benchmark; check its indentation."
        return source.problem("MN005", "is no benchmark", path, hint)
    if rule in ("type", "nullable"):
        kinds = error.constraint if rule == "type" else _kinds_at(dialect, path)
        expected = _expected(kinds)
        message = f"found {_show(error.value)}, expected {expected}"
        return source.problem("MN006", message, path, doc or fields.misplaced(dialect, path))
    return source.problem("MN007", _rule_text(rule or "form", error.value, error), path, doc)


def _kinds_at(dialect: str, path: DataPath) -> Any:
    return (fields.rules_at(fields.FORMS[dialect], path) or {}).get("type")


def _rule_text(rule: str, value: Any, error: ValidationError) -> str:
    constraint = error.constraint
    if rule == "allowed":
        near = [str(item) for item in constraint]
        close = difflib.get_close_matches(str(value)[:60], near, 1)
        tail = f"; did you mean '{close[0]}'?" if close else ""
        return f"found {_show(value)}, expected one of {', '.join(map(str, constraint))}{tail}"
    if rule == "min":
        return f"found {_show(value)}, expected at least {constraint}"
    if rule == "max":
        return f"found {_show(value)}, expected at most {constraint}"
    if rule == "empty":
        return "is empty, expected something"
    if rule == "regex":
        return f"found {_show(value)}, which does not have the expected form {constraint}"
    if rule in ("keysrules", "valuesrules"):
        return f"found {_show(value)}"
    info = error.info[0] if error.info else rule
    return f"found {_show(value)}, {info}"


_TYPE_WORDS = {
    "string": "text",
    "dict": "a mapping",
    "list": "a list",
    "strict_integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}


def _expected(constraint: Any) -> str:
    if constraint is None:
        return "a value"
    kinds = constraint if isinstance(constraint, (list, tuple)) else [constraint]
    words = [_TYPE_WORDS[kind] for kind in kinds if kind in _TYPE_WORDS]
    return " or ".join(words)


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "boolean", int: "number"}
    return names.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return f"a {_kind(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


#: Where upstream ignores keys that it does not know; numbers stand for every node.
_IGNORED = (
    (),
    ("deployment", 0),
    ("config", 0),
    ("templates", 0),
    ("routing",),
    ("disaggregated_prefill",),
)


def _is_mistake(source: Source, dialect: str, path: DataPath) -> bool:
    """Whether an unknown key is more than what another harness reads.

    A file that is no case, and what only we know, has no keys but ours. A key that is near a
    known one, or belongs elsewhere, was meant to do something; one that asks for a gate would
    leave a run green that nobody judged.
    """
    key, where = str(path[-1]), tuple(0 if isinstance(part, int) else part for part in path[:-1])
    in_benchmark = where[:1] == ("benchmarks",) and len(path) == 3
    if dialect not in FIELDS or not (in_benchmark or where in _IGNORED) or key.endswith(_GATES):
        return True
    if key in fields.OLD:
        return False
    if key in fields.LATER or (in_benchmark and key.endswith(_LATER)):
        return key not in fields.LATER and bool(_close(dialect, path, 0.9))
    return bool(_meant(source, dialect, path))


def unread(source: Source) -> Iterator[DataPath]:
    """Keys of a case that other harnesses read, or nobody, and that nobody reads here.

    An error would refuse cases that run. The linter says that they are not read.
    """
    dialect = dialect_of(source) if isinstance(source.data, dict) else None
    if dialect is not None:
        yield from _unread(source, dialect, source.data, ())


def _unread(source: Source, dialect: str, value: Any, path: DataPath) -> Iterator[DataPath]:
    if isinstance(value, list):
        for at, inner in enumerate(value):
            if isinstance(inner, dict):
                yield from _unread(source, dialect, inner, (*path, at))
    elif isinstance(value, dict):
        known = _known_at(dialect, tuple(0 if isinstance(part, int) else part for part in path))
        for key, inner in value.items():
            where = (*path, key)
            if known and key not in known:
                if path or not _holds_anchor(source, key):
                    yield where
            elif isinstance(inner, (dict, list)) and key not in ("envs", "server_cmd_template"):
                yield from _unread(source, dialect, inner, where)


@cache
def _known_at(dialect: str, path: DataPath) -> frozenset[str]:
    return frozenset(known_keys(dialect, path))


def _holds_anchor(source: Source, key: Any) -> bool:
    """A key that is not ours but only holds a YAML anchor for others is no mistake."""
    if str(key).startswith(("x-", ".", "_") if is_several(source.data) else ("x-", ".")):
        return True
    place = source.place(key)
    text = source.lines[place.line - 1] if place.line <= len(source.lines) else ""
    if len(text) > place.column + len(str(key)) + _LONG:
        return False
    return bool(re.search(r":\s*&[\w-]+\s*(#.*)?$", text[place.column - 1 :]))


def _close(dialect: str, path: DataPath, ratio: float) -> str:
    """The key that may stand here and is spelled nearly so; empty when there is none."""
    key = str(path[-1])
    if len(key) > _LONGEST_KEY:
        return ""
    close = difflib.get_close_matches(key, known_keys(dialect, path[:-1]), 1, ratio)
    return close[0] if close else ""


def _suggest(source: Source, dialect: str, path: DataPath) -> str:
    """What to do about an unknown key."""
    here = known_keys(dialect, path[:-1])
    known = f"Remove it. Known here: {', '.join(sorted(here))}." if here else "Remove it."
    return _meant(source, dialect, path) or known


def _meant(source: Source, dialect: str, path: DataPath) -> str:
    """What an unknown key was probably meant to be; empty when that cannot be told."""
    key = str(path[-1])
    close = _close(dialect, path, 0.7)
    if close:
        return f"Did you mean '{close}'?"
    if dialect not in FIELDS:
        return ""
    if key in known_keys(dialect, ()):
        return f"'{key}' belongs at the top of the case; check its indentation."
    if key in BENCHMARK:
        return f"'{key}' belongs under a name in 'benchmarks'; check its indentation."
    if _looks_like_benchmark(source, path):
        if path[:1] == ("benchmarks",):
            return f"'{key}' looks like a benchmark: it belongs beside '{path[1]}', not in it."
        return f"'{key}' looks like a benchmark: it belongs in 'benchmarks'."
    inside = [
        name
        for name in ("deployment", "config", "templates", "routing", "disaggregated_prefill")
        if key in known_keys(dialect, (name, 0)) or key in known_keys(dialect, (name,))
    ]
    if inside:
        return f"'{key}' belongs in '{inside[0]}'; check its indentation."
    other = "routing" if dialect == "deployment" else "deployment"
    if not path[:-1] and key in FIELDS[other]:
        return f"'{key}' belongs to the {other} dialect; this case is written in the {dialect} one."
    return ""


def _looks_like_benchmark(source: Source, path: DataPath) -> bool:
    value = source.data
    for part in path:
        value = value[part]
    return isinstance(value, dict) and "case_type" in value
