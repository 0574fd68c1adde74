"""The canvas of all plots: figures in one style, as SVG that takes its colours from the page.

Enters: sizes, a figure. Leaves: axes, SVG text. Touches nothing.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from steps.core import foreign

#: Name of a colour -> (a stand-in that no plot uses otherwise, colour outside a page).
COLOURS = {
    "ink": ("#010203", "#1b1f24"),
    "faint": ("#010204", "#8b949e"),
    "a": ("#010205", "#0969da"),
    "b": ("#010206", "#bc4c00"),
    "c": ("#010207", "#1a7f37"),
    "d": ("#010208", "#8250df"),
    "idle": ("#010209", "#9da7b3"),
    "bad": ("#01020a", "#cf222e"),
}
_COUNTER = itertools.count(1)


def legend(axes: Any, columns: int = 4) -> None:
    """The legend above the axes, where it hides no point."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2)


def ink(name: str) -> str:
    """A colour's stand-in."""
    return COLOURS[name][0]


@contextmanager
def figure(
    width: float,
    heights: Sequence[float],
    left: float = 0.75,
    gap: float = 0.1,
    shared: bool = False,
) -> Iterator[tuple[Any, Sequence[Any]]]:
    """A figure and its axes, from above, in the style of all plots; inches.

    Margins are given: a layout engine draws everything once more to find them.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    dark, faint = ink("ink"), ink("faint")
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "multinode",
        "path.simplify": False,
        "font.family": "sans-serif",
        "font.size": 8.5,
        "text.color": dark,
        "axes.labelcolor": dark,
        "axes.edgecolor": faint,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": faint,
        "grid.alpha": 0.35,
        "grid.linewidth": 0.5,
        "xtick.color": faint,
        "ytick.color": faint,
        "xtick.labelcolor": dark,
        "ytick.labelcolor": dark,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
    }
    with rc_context(style):
        tall, count = sum(heights), len(heights)
        figure = Figure(figsize=(width, tall), dpi=72)
        FigureCanvasSVG(figure)
        grid = {
            "left": left / width,
            "right": 1 - 0.12 / width,
            "bottom": 0.45 / tall,
            "top": 1 - (0.2 + gap) / tall,
            "hspace": gap * count / tall,
            "height_ratios": heights,
        }
        made = figure.subplots(count, 1, sharex=shared, squeeze=False, gridspec_kw=grid)
        yield figure, list(made[:, 0])


def svg(figure: Any, title: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure as SVG for a page: named, without fixed size, ids and colours of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1">', text, count=1)
    for gid, words in (titles or {}).items():
        said = escape(words)
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{said}</title>')
    prefix = f"p{next(_COUNTER)}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r"font: ([\d.]+px) '[^;\"]*", r"font: \1 var(--font)", text)
    for name, (stand_in, _) in COLOURS.items():
        text = text.replace(stand_in, f"var(--plot-{name})")
    text = text.replace("#fffffe", "var(--plot-on)")
    text = re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
    head = f'<svg role="img" aria-label="{escape(title)}"'
    return foreign.html(text.replace("<svg", head, 1).strip())
