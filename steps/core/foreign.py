"""Foreign text on its way to a reader: one function for each kind of place that shows it.

Enters: words of engines, peers, files, exceptions and histories. Leaves: text that a terminal, a
CI's job log, Markdown, XML, HTML or a plot takes for text. Touches nothing.

The streams of the door pass everything through :func:`printed`, so what nobody thought of comes
out harmless too. What a stream cannot know is where foreign text begins: whoever puts it into a
line of ours uses :func:`line`, or :func:`block`, so that it forges no line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Whole sequences of a terminal: strings such as OSC, then CSI, then the short ones. No part of
#: one can begin another, so that a text of beginnings only costs no more than its length.
_SEQUENCE = re.compile(
    "(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f\n]{0,4096}(?:\x07|\x1b\\\\|\x9c)"
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|\x1b[ -/]*[0-OQ-WYZ`-~]"
)
#: What a terminal obeys, what turns the direction of reading, what no encoding has.
_SIGNS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_MARK = "\N{REPLACEMENT CHARACTER}"
#: GitHub obeys a line that begins with ``::``, after any space, and ``##[`` wherever it stands.
_ORDER = re.compile(r"^([^\S\n]*)::", re.MULTILINE)
_MARKUP = re.compile(r"\\(?=[!-/:-@\[-`{-~])|<(?=[A-Za-z/!?])|[|]|^[#>]")
_INDENT = "    "


def signs(text: str) -> str:
    """Every sign that is obeyed rather than shown as one that is shown: columns stay."""
    return _SIGNS.sub(_MARK, text)


def plain(text: str) -> str:
    """Text of any number of lines without what a terminal obeys."""
    return signs(_SEQUENCE.sub("", text.replace("\r\n", "\n")))


def line(text: object) -> str:
    """Foreign words within a line of ours: one line stays one line."""
    return plain(str(text)).replace("\n", " ")


def block(text: object) -> str:
    """A message as it is printed: its further lines are indented, and none is an order."""
    first, *rest = plain(str(text)).split("\n")
    # Lines that stand in already, such as a hint's, keep their columns: they may be YAML.
    inner = len(_INDENT) if all(each.startswith(_INDENT) for each in rest) else 0
    further = (f"{_INDENT}{printed(each[inner:])}" for each in rest)
    return "\n".join([first.replace("##[", "## ["), *further])


def printed(text: str, fresh: bool = True) -> str:
    """What may be written to a terminal or a job log.

    Args:
        fresh: it begins a line.
    """
    text = plain(text).replace("##[", "## [")
    if "::" not in text:
        return text
    head, between, tail = ("", "", text) if fresh else text.partition("\n")
    return f"{head}{between}" + _ORDER.sub(r"\1\\::", tail)


def data(text: str) -> str:
    """The message of a GitHub annotation."""
    return plain(text).replace("%", "%25").replace("\n", "%0A")


def field(text: str) -> str:
    """A property of a GitHub annotation."""
    return data(text).replace(":", "%3A").replace(",", "%2C")


def json(text: str) -> str:
    """A JSON document that says the same in signs that are shown."""
    return _SIGNS.sub(_escape, text).replace("##[", "#\\u0023[")


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def markdown(text: object) -> str:
    """Foreign words within a line of Markdown: no HTML, no link, no cell of a table."""
    return printed(_MARKUP.sub(r"\\\g<0>", line(text)).replace("](", "]\\("))


def code(text: object) -> str:
    """Foreign words as a span of code."""
    inner = printed(line(text))
    ticks = "`" * (_longest(inner, 0) + 1)
    space = " " if "`" in inner else ""
    return f"{ticks}{space}{inner}{space}{ticks}"


def fence(lines: Iterable[str]) -> str:
    """Foreign lines as a block of code, which none of them ends, and none stands out from."""
    body = "\n".join(_INDENT + each for each in printed("\n".join(lines)).split("\n"))
    ticks = "`" * max(3, _longest(body, 2) + 1)
    return f"{ticks}\n{body}\n{ticks}"


def _longest(text: str, least: int) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=least)


def xml(text: object) -> str:
    """Text for XML: only characters that it can hold; its writer escapes the rest."""
    return plain(str(text))


def html(page: str) -> str:
    """A whole page, or picture, whose template has escaped the rest."""
    return plain(page)


def plot(text: str) -> str:
    """A label of a plot: no formula."""
    return line(text).replace("$", r"\$")
