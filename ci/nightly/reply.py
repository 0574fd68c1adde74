"""The reply to a comment, or the note on a night: how each case went, in Markdown.

Enters: entries of the matrix, what their jobs left, where people see them. Leaves: rows and the
text. Touches: ``told`` reads the files of the jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.core import foreign
from steps.core.record.rundir import RunDir, read_bounded, read_json

#: The directory of an entry's verdict, and that of what a search for its commit found.
SAID, FOUND = "_said-", "_found-"
#: GitHub takes 65,536 signs.
MOST = 60_000
MOST_ROWS, _LONGEST, _MOST_FOUND = 100, 200, 8000
#: What GitHub makes a mention of, and would tell somebody of.
_MENTION = re.compile(r"(?<!\w)([@#])(?=\w)")
_MARKS = {"pass": "✅", "no_worse": "✅", "running": "⏳", "cancelled": "⚪"}
#: What a comparison found, in words.
_COMPARED = {
    "no_worse": "no worse",
    "worse": "worse",
    "unknown": "cannot tell within the budget",
}


@dataclass(frozen=True)
class Row:
    """How one entry went.

    Attributes:
        verdict: of the run, or what a comparison found; ``running``, or how its job ended.
        found: what a search for the commit said, Markdown of ours.
    """

    name: str
    soc: str
    verdict: str
    why: str = ""
    links: tuple[tuple[str, str], ...] = ()
    found: str = ""

    @property
    def green(self) -> bool:
        """Whether nothing is wrong with it."""
        return _MARKS.get(self.verdict) == "✅"


def told(
    entry: Mapping[str, Any],
    home: Path,
    jobs: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, str],
) -> Row:
    """The row of an entry.

    Args:
        home: where the directories of the jobs have been fetched to.
        jobs: every job of the workflow's run, by its name.
        files: where each artifact of the run is, by its name.
    """
    name = str(entry["name"])
    place = home / f"{SAID}{name}"
    ends = (f"/ {name} / run", f"/ {name} / run / run")
    mine = next((jobs[each] for each in jobs if f"/ {each}".endswith(ends)), {})
    ended = str(mine.get("conclusion") or "unknown")
    verdict, why = _compared(place) or _judged(place) or ("no verdict", f"its job: {ended}")
    if verdict == "no verdict" and ended == "cancelled":
        verdict, why = ended, "a newer one took over, or somebody stopped it"
    places = (("job", str(mine.get("html_url") or "")), ("files", files.get(name, "")))
    links = tuple((word, url) for word, url in places if url.startswith("https://"))
    found = (home / f"{FOUND}{name}" / "comment.md", place / "hunt.md")
    text = next((_text(file) for file in found if file.is_file()), "")
    return Row(name, str(entry["soc"]), verdict, why, links, text)


def _judged(place: Path) -> tuple[str, str] | None:
    data = read_json(RunDir(place).verdict)
    if not isinstance(data, dict) or not isinstance(data.get("verdict"), str):
        return None
    cause, issue = data.get("cause"), data.get("known_issue")
    why = str(cause.get("reason", "")) if isinstance(cause, dict) else ""
    if isinstance(issue, dict):
        why += f" (known: {issue.get('link', '')})"
    return data["verdict"], why


def _compared(place: Path) -> tuple[str, str] | None:
    data = read_json(place / "compare.json")
    if not isinstance(data, dict) or data.get("finding") not in _COMPARED:
        return None
    metrics = [one for one in data.get("metrics") or () if isinstance(one, dict)]
    worse = [str(one.get("name")) for one in metrics if one.get("finding") == "worse"]
    return data["finding"], ", ".join(worse)


def _text(path: Path) -> str:
    try:
        return read_bounded(path, 1 << 20).decode("utf-8", "replace").strip()[:_MOST_FOUND]
    except OSError as error:
        return f"its answer cannot be read: {error.strerror or error}"


def running(entry: Mapping[str, Any]) -> Row:
    """The row of an entry whose job has not ended."""
    return Row(str(entry["name"]), str(entry["soc"]), "running")


def text(about: str, rows: Sequence[Row], url: str) -> str:
    """The whole text.

    Args:
        about: what was asked and is tested, Markdown of ours.
        url: the workflow's run.
    """
    return "\n".join(_lines(about, rows, url))[:MOST] + "\n"


def _lines(about: str, rows: Sequence[Row], url: str) -> Iterator[str]:
    yield f"### {headline(rows)}"
    yield ""
    yield f"{about} [Run]({url})" if about else f"[Run]({url})"
    yield ""
    yield "| | case | SoC | verdict | why | |"
    yield "|---|---|---|---|---|---|"
    ordered = sorted(rows, key=lambda row: row.green)
    for row in ordered[:MOST_ROWS]:
        mark = _MARKS.get(row.verdict, "❌")
        word = _COMPARED.get(row.verdict, row.verdict)
        told = (row.name, row.soc, word, row.why[:_LONGEST])
        cells = [_quiet(foreign.markdown(cell)) for cell in told]
        links = " ".join(f"[{name}]({link})" for name, link in row.links)
        yield f"| {mark} | {' | '.join(cells)} | {links} |"
    if len(rows) > MOST_ROWS:
        yield f"\n{len(rows) - MOST_ROWS} more are in the run."
    for row in (row for row in ordered if row.found):
        yield f"\n<details><summary>{foreign.markdown(row.name)}: which commit</summary>\n"
        yield f"{_quiet(foreign.plain(row.found))}\n\n</details>"


def _quiet(text: str) -> str:
    """Markdown in which foreign words call nobody and link to no request of this repository."""
    return _MENTION.sub(r"\1<!-- -->", text)


def headline(rows: Sequence[Row]) -> str:
    """The result in a line."""
    left = [row for row in rows if row.verdict == "running"]
    if left:
        return f"⏳ {len(left)} case{'s' * (len(left) > 1)} running"
    green = sum(row.green for row in rows)
    return f"{'✅' if green == len(rows) else '❌'} {green} of {len(rows)} without fault"


def refused(about: str, why: str, hint: str) -> str:
    """The text when nothing was started."""
    lines = [f"### ❌ not started: {foreign.markdown(why)}"]
    lines += [foreign.markdown(hint)] if hint else []
    return "\n\n".join([*lines, about]) + "\n"
