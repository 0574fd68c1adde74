"""The JSON Schema of a case for editors, made from the schema that checks it.

Enters: ``steps.core.case.fields.FIELDS``. Leaves: JSON Schema (draft 7) that lets
through whatever the harness does. It is a little stricter than ``validate``,
which only warns of keys that nobody knows and takes quoted numbers as upstream does.
Touches nothing, but for :func:`main`, which writes ``configs/case.schema.json``.

    python -m steps.lint.jsonschema
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from steps.core import door
from steps.core.case.fields import FIELDS
from steps.core.case.numbers import dumps

FILE = Path("configs/case.schema.json")
_TYPES: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "dict": {"type": "object"},
    "list": {"type": "array"},
    "boolean": {"type": "boolean"},
    "number": {"type": "number"},
    "strict_integer": {"type": "integer"},
    "numeric_string": {"type": "string", "pattern": r"^\s*-?\d+(\.\d+)?\s*$"},
    "whole_string": {"type": "string", "pattern": r"^\s*\d+\s*$"},
    "switch_string": {"type": "string", "pattern": "^([Tt]rue|[Ff]alse|TRUE|FALSE)$"},
}


def schema() -> dict[str, Any]:
    """The schema of all dialects: which keys are at the top says which one holds."""
    dialects = {name: _mapping(fields) for name, fields in FIELDS.items()}
    for entry in dialects.values():
        entry["patternProperties"] = {r"^(x-|\.|_|env_|config_)": {}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "multinode case",
        "description": "A test of a model served across several machines (docs/cases.md).",
        "type": "object",
        "if": {"required": ["deployment"], "not": {"required": ["routing"]}},
        "then": {"$ref": "#/definitions/deployment"},
        "else": {
            "if": {"required": ["test_cases"]},
            "then": {
                "properties": {
                    "test_cases": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"$ref": "#/definitions/single"},
                    }
                }
            },
            "else": {"$ref": "#/definitions/routing"},
        },
        "definitions": dialects,
    }


def _mapping(fields: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "object",
        "properties": {key: _field(rules) for key, rules in fields.items()},
        "additionalProperties": False,
    }
    required = [key for key, rules in fields.items() if rules.get("required")]
    if required:
        made["required"] = required
    return made


def _field(rules: dict[str, Any]) -> dict[str, Any]:
    kinds = rules.get("type", [])
    shapes = [_shape(kind, rules) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    if rules.get("nullable"):
        shapes.append({"type": "null"})
    made = shapes[0] if len(shapes) == 1 else {"anyOf": shapes} if shapes else {}
    text = rules.get("meta", {}).get("doc")
    return {"description": text, **made} if text else made


def _shape(kind: str, rules: dict[str, Any]) -> dict[str, Any]:
    made = dict(_TYPES[kind])
    if kind == "dict":
        made.update(_object(rules))
    elif kind == "list":
        inner = rules.get("schema")
        if inner:
            made["items"] = _field(inner)
        if rules.get("empty") is False:
            made["minItems"] = 1
    elif kind in ("strict_integer", "number"):
        for key, name in (("min", "minimum"), ("min_value", "minimum"), ("max", "maximum")):
            if key in rules:
                made[name] = rules[key]
    elif kind == "string":
        if rules.get("empty") is False:
            made["minLength"] = 1
        if "regex" in rules:
            made["pattern"] = rules["regex"]
    if "allowed" in rules:
        made["enum"] = list(rules["allowed"])
    return made


def _object(rules: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if isinstance(rules.get("schema"), dict):
        made = _mapping(rules["schema"])
    if "valuesrules" in rules:
        made["additionalProperties"] = _field(rules["valuesrules"])
    names = rules.get("keysrules", {})
    if "allowed" in names:
        made["propertyNames"] = {"enum": list(names["allowed"])}
    elif "regex" in names:
        made["propertyNames"] = {"pattern": names["regex"]}
    return made


def text() -> str:
    """The file's content."""
    return dumps(schema(), indent=1) + "\n"


def work(_arguments: argparse.Namespace) -> int:
    """Write the file."""
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE}: {len(text()):,} bytes")
    return 0


main = door.Verb("python -m steps.lint.jsonschema", __doc__, door.no_options, work)

if __name__ == "__main__":
    sys.exit(main())
