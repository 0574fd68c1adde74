"""What a node's engines and devices did, second by second: the file.

Enters: ``telemetry.jsonl.gz`` of a node. Leaves: tracks. Touches: reads that file.

The first line says of which node it is; ``{"s": source, "keys": [...]}`` names a source's series
from then on, ``{"t": seconds, "v": {source: [place, value, ...]}}`` what changed in them. A source
that is not in a line did not answer: a gap, in which nothing is known.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steps.core.case.numbers import LIMIT, is_finite, loads
from steps.core.record.rundir import read_bounded

SCHEMA, NAME = 1, "telemetry.jsonl.gz"
#: The name under which a node's own devices stand beside its processes.
MACHINE = "machine"
#: Unpacked bytes of a file that are read.
MOST_BYTES = 512 << 20
Span = tuple[float, float]
#: Times of a series' changes, and its values from then on.
Series = tuple["array[float]", "array[float]"]


@dataclass
class Track:
    """One source: when it answered, and of each series the times and values of its changes.

    Times are seconds since the epoch, by the node's own clock.
    """

    seen: array[float] = field(default_factory=lambda: array("d"))
    series: dict[str, Series] = field(default_factory=dict)

    def engines(self) -> list[str]:
        """Its engines, by their label."""
        return sorted(
            {key.split("|")[1] for key in self.series}, key=lambda name: (len(name), name)
        )

    def grown(self, key: str, span: Span) -> float:
        """How much a counter grew; one that was set back, by an engine that came anew, goes on."""
        if key not in self.series:
            return 0.0
        times, values = self.series[key]
        after = bisect_left(self.seen, span[1])  # what grew to the end is seen a little later
        until = self.seen[after] if after < len(self.seen) else span[1]
        low, high = bisect_right(times, span[0]), bisect_right(times, until)
        # Looks begin before the servers do: what was there at the first is of this run.
        base = values[low - 1] if low else 0.0
        total = 0.0
        for value in values[low:high]:
            total += value - base if value >= base else value
            base = value
        return total

    def values(self, key: str, span: Span) -> list[float]:
        """A gauge's value at each time at which the source answered."""
        if key not in self.series:
            return []
        times, values = self.series[key]
        moments = self.seen[bisect_right(self.seen, span[0]) : bisect_right(self.seen, span[1])]
        places = (bisect_right(times, moment) - 1 for moment in moments)
        return [values[place] for place in places if place >= 0]


def read(path: Path, most: int = MOST_BYTES) -> dict[str, Track]:
    """The tracks of a node; empty without a file, a beginning where its end is missing."""
    tracks: dict[str, Track] = {}
    places: dict[str, list[Series | None]] = {}
    started = 0.0
    for line in _lines(path, most):
        try:
            found = loads(line)
            if "schema" in found:
                if found["schema"] != SCHEMA:
                    return {}
                started, places = float(found["started"]), {}
            elif "keys" in found:
                series = tracks.setdefault(str(found["s"]), Track()).series
                places[str(found["s"])] = [
                    series.setdefault(key, (array("d"), array("d")))
                    if key.count("|") == 2
                    else None
                    for key in map(str, found["keys"])
                ]
            else:
                for name, pairs in found["v"].items():
                    _add(tracks[name], places[name], started + float(found["t"]), pairs)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            continue  # a torn line, or one of nobody's; those beside it count
    for track in tracks.values():
        track.series = {key: series for key, series in track.series.items() if series[0]}
    return tracks


def _add(
    track: Track, places: Sequence[Series | None], moment: float, pairs: Sequence[Any]
) -> None:
    """Millions of values: nothing is looked up for each."""
    if not is_finite(moment) or (track.seen and moment < track.seen[-1]):
        return
    track.seen.append(moment)
    for place, value in zip(pairs[::2], pairs[1::2], strict=True):
        series = places[place]
        if series is not None and -LIMIT <= value <= LIMIT:
            series[0].append(moment)
            series[1].append(value)


def _lines(path: Path, most: int) -> Iterator[str]:
    """Whole lines of a file that may end anywhere, or hold several runs of one node."""
    try:
        packed = read_bounded(path)
    except OSError:
        return
    rest = b""
    while packed and most > 0:
        unpacker = zlib.decompressobj(wbits=31)
        while not unpacker.eof and most > 0:
            try:
                piece = unpacker.decompress(packed, min(most, 1 << 20))
            except zlib.error:
                return
            if not (piece or unpacker.unconsumed_tail):
                break
            packed = unpacker.unconsumed_tail
            most -= len(piece)
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
        packed = unpacker.unused_data
