"""The pages of a comparison and of a search: ``report.html`` in their directories.

Enters: what ``compare.json`` and ``bisect.json`` hold, the runs beside them. Leaves: a page that
needs no network. Touches: reads those runs, writes the page.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ci.compare import pictures
from ci.report import html
from steps.core import foreign
from steps.core.case.gates import METRICS
from steps.core.errors import MultinodeError
from steps.core.record import outcome
from steps.core.record.outcome import Finished
from steps.core.record.rundir import RunDir, write_text
from steps.core.redaction import here

Rows = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A part of a page: words, a table, pictures beside each other, a text as it is."""

    title: str
    words: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    rows: Rows = ()
    figures: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    text: str = ""


def write(home: Path, good: bool, headline: str, told: str, sections: Iterable[Section]) -> Path:
    """Make the page.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    page = html.template("sections.html").render(
        good=good, headline=headline, told=told, sections=list(sections), style=html.style()
    )
    path = home / "report.html"
    write_text(path, foreign.html(page))
    return path


def compared(home: Path, given: Mapping[str, Any]) -> Path:
    """The page of a comparison, of what ``compare.json`` holds."""
    content = here().value(given)
    names = [one["name"] for one in content["variants"]]
    found = content["finding"].replace("_", " ")
    told = f"{len(content['starts'])} starts, {content['device_minutes']:g} device minutes"
    return write(
        home,
        found == "no worse",
        f"{names[1]} against {names[0]}: {found}",
        told,
        _of_comparison(home, content, names),
    )


def _of_comparison(home: Path, content: Mapping[str, Any], names: list[str]) -> Iterator[Section]:
    measured = [one for one in content["metrics"] if one["effect"]]
    yield Section(
        "Metrics",
        (f"Positive is better. A difference below {100 * content['margin']:g} % does not matter.",),
        ("metric", "finding", *names, f"{names[1]} is better by", "interval", "p", "test"),
        [_metric(one) for one in content["metrics"]],
        tuple(
            pictures.samples(
                f"{one['name']}: a point for each start",
                {names[0]: one["a"], names[1]: one["b"]},
                METRICS[one["name"].split()[-1]][0],
            )
            for one in measured
        ),
    )
    yield Section(
        "Starts",
        heads=("start", "variant", "what it showed"),
        rows=[(s["run"], names[s["variant"]], _shown(s)) for s in content["starts"]],
    )
    changes = [
        (v["name"], "; ".join((*v["settings"], *v["products"], v["image"])) or "the case as it is")
        for v in content["variants"]
    ]
    yield Section("Variants", heads=("variant", "what it changes"), rows=changes)
    last = [[s["run"] for s in content["starts"] if s["variant"] == v][-1:] for v in (0, 1)]
    yield from beside(home, [run[0] for run in last if run], names)


def _metric(one: Mapping[str, Any]) -> tuple[str, ...]:
    effect = one["effect"]
    if effect is None:
        counts = [f"{sum(one[side]):g} of {len(one[side])}" for side in "ab"]
        told = ["", ""]
    else:
        counts = [f"{fmean(one[side]):,.6g} ({len(one[side])})" for side in "ab"]
        told = [
            f"{100 * effect['estimate']:+.1f} %",
            f"{100 * effect['low']:+.1f} to {100 * effect['high']:+.1f} %",
        ]
    finding = one["finding"].replace("_", " ")
    return (one["name"], finding, *counts, *told, f"{one['p']:.3g}", one["test"])


def _shown(start: Mapping[str, Any]) -> str:
    values = (f"{name} {fmean(each):.6g}" for name, each in start["values"].items() if each)
    usual = [text for text in values if text.split()[-2] in ("output_throughput", "accuracy")]
    return start["failure"] or ", ".join(usual) or "served"


def searched(home: Path, given: Mapping[str, Any]) -> Path:
    """The page of a search, of what ``bisect.json`` holds."""
    content = here().value(given)
    answer, commits = content["answer"], content["commits"]
    told = f"{len(content['starts'])} starts, {sum(content['device_minutes']):.1f} device minutes"
    return write(
        home,
        answer["kind"] == "culprit",
        f"{answer['kind']}: {answer['why']}",
        f"{told}; searched: {content['searched']}; {_short(commits[0])} was good, "
        f"{_short(commits[-1])} is bad",
        _of_search(home, content, answer, commits),
    )


def _of_search(
    home: Path, content: Mapping[str, Any], answer: Mapping[str, Any], commits: list[dict[str, Any]]
) -> Iterator[Section]:
    places = {one["sha"]: k for k, one in enumerate(commits)}
    suspects = [(one, places[one["sha"]]) for one in answer["suspects"]]
    if suspects:
        yield Section(
            "Suspects",
            heads=("commit", "odds", "product", "subject"),
            rows=[
                (_short(s), f"{100 * s['odds']:.1f} %", s["product"], s["subject"])
                for s, _ in suspects
            ],
        )
    first = suspects[0][1] if suspects else None
    failure = content["searched"] if content["by"] == "failure" else ""
    points = _points(content, failure)
    lost = sorted({*content["out"], *content["unclear"]})
    unit = "failed" if failure else METRICS[content["searched"].split()[-1]][0]
    if points:
        picture = pictures.walk(
            f"{content['searched']} over {len(commits)} commits, oldest first",
            points,
            first,
            lost,
            unit,
        )
        words = (
            "A point for each start; what could not be built or judged is marked at the foot.",
        )
        yield Section("The walk", words, wide=(picture,))
    rows = []
    for number, start in enumerate(content["starts"], 1):
        at = start["variant"]
        one = commits[at]
        rows.append((number, at, _short(one), _value(content, start), one["subject"]))
    yield Section("Starts", (), ("start", "place", "commit", "what it showed", "subject"), rows)
    if first:
        runs = [
            [s["run"] for s in content["starts"] if s["variant"] == k] for k in (first - 1, first)
        ]
        pair = [each[-1] for each in runs if each]
        yield from beside(home, pair, ["its parent", "the suspect"])


def _points(content: Mapping[str, Any], failure: str) -> list[tuple[int, float]]:
    """Place and value of each start that tells something; of failures 1 or 0."""
    if failure:
        told = [s for s in content["starts"] if s["failure"] in ("", failure)]
        return [(s["variant"], float(bool(s["failure"]))) for s in told]
    name = content["searched"]
    told = [s for s in content["starts"] if s["values"].get(name)]
    return [(s["variant"], fmean(s["values"][name])) for s in told]


def _value(content: Mapping[str, Any], start: Mapping[str, Any]) -> str:
    values = start["values"].get(content["searched"])
    return start["failure"] or (f"{fmean(values):.6g}" if values else "served")


def _short(commit: Mapping[str, Any]) -> str:
    return str(commit["sha"])[:10] if len(commit["sha"]) == 40 else str(commit["sha"])


def beside(home: Path, runs: Sequence[str], names: Sequence[str]) -> Iterator[Section]:
    """Timelines of two runs, one above the other, and how their plans differ."""
    found = []
    for run in runs:
        try:
            found.append(outcome.read(RunDir(home / run)))
        except MultinodeError:
            return
    if len(found) < 2:
        return
    pictures = [html.timeline(o, {k: r for k, r in o.records.items() if r}) for o in found]
    words = tuple(f"{name}: {run}" for name, run in zip(names, runs, strict=False))
    yield Section("Timelines", words, wide=tuple(pictures))
    old, new = (list(_lines(over)) for over in found)
    diff = difflib.unified_diff(old, new, names[0], names[1], lineterm="", n=2)
    yield Section("Difference of the plans", text="\n".join(diff) or "none")


def _lines(over: Finished) -> Iterator[str]:
    """Commands and environments of a plan, without what differs from run to run."""
    for node, processes in html.commands(over.plan).items():
        for name, text in processes:
            yield f"{node} {name}"
            said = text.replace(over.plan.run, "<run>")
            for each in over.plan.nodes:
                said = said.replace(each.address, f"<address of {each.name}>")
            yield from said.split("\n")
