"""The reference page, made from the code it describes.

Enters: the schema of cases, the parsers, the exit codes, the settings. Leaves:
``docs/reference.md``, or with ``--check`` whether it is fresh. Touches: that file.

    python -m ci.tools.reference [--check]
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steps.core import door, settings
from steps.core.case.fields import FIELDS
from steps.core.case.gates import METRICS
from steps.core.errors import Exit
from steps.core.plan import clusters
from steps.core.record.verdict import CLASSES

PAGE = clusters.ROOT / "docs" / "reference.md"
#: What one types -> the module it starts.
PARSERS = {
    "nox -s multinode --": "ci.run",
    "nox -s validate --": "steps.validate",
    "nox -s matrix --": "ci.nightly.matrix",
    "nox -s report --": "ci.report.html",
    "nox -s trend --": "ci.nightly.trend",
    "nox -s baseline --": "ci.nightly.baseline",
    "nox -s lock --": "ci.tools.lock",
}
EXITS = {
    Exit.PASS: "the case passed, or the command did its work",
    Exit.PRODUCT: "the product under test failed",
    Exit.USAGE: "the case or the command is wrong",
    Exit.INFRA: "something around the product is broken; nothing is said about it",
    Exit.DEADLINE: "a deadline passed, or nothing moved any more",
    Exit.INTERRUPTED: "interrupted by Ctrl-C or a signal",
}


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """(field, kind, sentence) of every field, those of mappings and lists below their own."""
    for name, rules in schema.items():
        here = f"{path}{name}"
        meta = rules.get("meta", {})
        doc = meta.get("doc", "")
        if rules.get("required"):
            doc += " Required."
        if meta.get("ours"):
            doc += " *(multinode's own)*"
        kind = rules.get("type", "")
        words = kind if isinstance(kind, str) else " or ".join(kind)
        allowed = rules.get("allowed")
        if allowed:
            words = " or ".join(f"`{value}`" for value in allowed)
        yield f"`{here}`", words.replace("_", " "), doc.strip()
        inner = rules.get("schema")
        if isinstance(inner, dict):
            if "type" in inner:
                if isinstance(inner.get("schema"), dict) and "type" not in inner["schema"]:
                    yield from fields(inner["schema"], f"{here}[].")
            else:
                yield from fields(inner, f"{here}.")
        values = rules.get("valuesrules", {})
        if isinstance(values.get("schema"), dict):
            yield from fields(values["schema"], f"{here}.<name>.")


def variables() -> list[tuple[str, str]]:
    """(variable, setting) that ``steps.core.settings`` reads."""
    tree = ast.parse(Path(settings.__file__).read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.keyword)):
        for node in ast.walk(call.value):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and call.arg
            ):
                found.setdefault(str(node.args[0].value), call.arg)
    return sorted(found.items())


def page() -> str:
    """The whole page."""
    parts = ["# Reference", "Made from the code by `python -m ci.tools.reference`; do not edit."]
    for dialect, schema in FIELDS.items():
        parts.append(f"## Fields of a case, {dialect} dialect")
        parts.append(_table(("field", "kind", "meaning"), fields(schema)))
    parts.append("## Metrics for gates")
    metrics = [
        (f"`{name}`", unit, "more" if up else "less") for name, (unit, up) in METRICS.items()
    ]
    parts.append(_table(("metric", "unit", "better is"), metrics))
    parts.append("## Commands")
    for command, module in PARSERS.items():
        parser: argparse.ArgumentParser = importlib.import_module(module).main.parser()
        parts += [f"### `{command}`", f"```text\n{_help(parser, command)}\n```"]
    parts.append("## Exit codes")
    codes = [
        (
            str(int(code)),
            text,
            ", ".join(name for name, exit_code in CLASSES.items() if exit_code is code),
        )
        for code, text in EXITS.items()
    ]
    parts.append(_table(("code", "meaning", "verdicts"), codes))
    parts.append("## Environment variables")
    rows = [(f"`{name}`", setting.replace("_", " ")) for name, setting in variables()]
    parts.append(_table(("variable", "setting"), rows))
    return "\n\n".join(parts) + "\n"


def _help(parser: argparse.ArgumentParser, command: str) -> str:
    """The options, wrapped the same on every Python and terminal."""
    lines = [(parser.description or "").strip(), ""]
    for action in parser._actions:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.nargs != 0 and action.option_strings:
            choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
            name += f" {choices or action.metavar or action.dest.upper()}"
        text = (action.help or "").replace("%%", "%")
        lines.append(f"  {name}\n      {text}")
    return "\n".join(lines).strip()


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="say whether the page is fresh")


def work(arguments: argparse.Namespace) -> int:
    """Write the page; with ``--check`` say whether it is fresh."""
    text = page()
    if arguments.check:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE} is {'fresh' if fresh else 'old: run `python -m ci.tools.reference`'}")
        return int(Exit.PASS if fresh else Exit.USAGE)
    PAGE.write_text(text, encoding="utf-8")
    return int(Exit.PASS)


main = door.Verb("python -m ci.tools.reference", __doc__, _options, work)

if __name__ == "__main__":
    sys.exit(main())
