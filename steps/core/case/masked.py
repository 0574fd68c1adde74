"""A case's text without its secrets: still YAML, with every line where it was.

Enters: text, a redactor. Leaves: text. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from steps.core.case.numbers import dumps
from steps.core.case.source import Loader
from steps.core.redaction import Redactor, here

#: A longer text is no case that anybody wrote; its tree would take much memory.
_LARGE = 1 << 17
#: Where a piece of the text begins and ends, and what stands there instead.
Edit = tuple[int, int, str]


def mask(text: str, redactor: Redactor | None = None) -> str:
    """The text with the secrets in its values and comments hidden; keys stay."""
    known = redactor or here()
    try:
        if len(text) > _LARGE:
            return known.unparsed(text)
        root = yaml.compose(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return known.unparsed(text)
    parts, done = [], 0
    for start, end, new in sorted(_edits(root, text, known)) if root else ():
        parts += [known.text(text[done:start]), new]
        done = end
    return "".join([*parts, known.text(text[done:])])


def _edits(root: Node, text: str, known: Redactor) -> Iterator[Edit]:
    """Every scalar of a tree with what is shown for it; an alias is its anchor's."""
    seen: set[int] = set()
    # A list and no recursion: a case may be nested deeper than Python's stack.
    waiting: list[tuple[Node, str]] = [(root, "")]
    while waiting:
        node, name = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ScalarNode):
            yield _edit(node, text, known, known.value({name: node.value})[name])
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                yield from _kept(key, text, seen)
                # A key that is a tree has no name; to write it out may need a deep stack too.
                waiting.append((value, key.value if isinstance(key, ScalarNode) else ""))
        elif isinstance(node, SequenceNode):
            first = {id(entry): entry for entry in node.value if id(entry) not in seen}.values()
            words = [entry.value if isinstance(entry, ScalarNode) else None for entry in first]
            for entry, shown in zip(first, known.value({name: words})[name], strict=True):
                if shown is None:
                    waiting.append((entry, name))
                else:
                    seen.add(id(entry))
                    yield _edit(entry, text, known, shown)


def _kept(key: Node, text: str, seen: set[int]) -> Iterator[Edit]:
    if isinstance(key, ScalarNode) and id(key) not in seen:
        seen.add(id(key))
        start, end = key.start_mark.index, key.end_mark.index
        yield start, end, text[start:end]


def _edit(node: ScalarNode, text: str, known: Redactor, shown: str) -> Edit:
    start, end = node.start_mark.index, node.end_mark.index
    old = text[start:end]
    if shown == node.value:
        return start, end, old
    if node.style in ("|", ">"):
        new = known.text(old)
        if new != old:
            return start, end, new
    plain = not node.style and "\n" not in old
    new = shown if plain else dumps(shown, ensure_ascii=False)
    return start, end, new + "\n" * old.count("\n")
