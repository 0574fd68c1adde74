"""The fault language of a rehearsal, as far as the harness must understand it.

Enters: ``--fault`` texts. Leaves: those the stand-ins carry out themselves,
and those the runner delivers as signals. Touches nothing.

    WHAT[=ARG]@NODE[.PROCESS][:WHEN]

The stand-ins have a parser of their own and know nothing of this one.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

_DEADLY = ("crash", "exit0", "kill9", "oom", "hang", "stop", "fork-away")
_PROCESS = [*_DEADLY, "ignore-term"]
_ANSWERS = ["http503", "slow", "silent", "garbage", "empty", "midstream", "truncate"]
STAND_IN = (*_PROCESS, *_ANSWERS, "refuse-handoff", "miscount", "low-acceptance", "busy")
#: Faults of processes that are no stand-ins: signals.
SIGNALS = {
    "kill9": signal.SIGKILL,
    "crash": signal.SIGABRT,
    "stop": signal.SIGSTOP,
    "exit0": signal.SIGTERM,
}
RUNNER_PROCESSES = ("proxy", "bench", "node")
RUNNER_MOMENTS = ("load", "probe", "checks", "bench", "proof")
_SHAPE = re.compile(
    r"(?P<what>[a-z0-9-]+)(=(?P<arg>\d+(\.\d+)?))?@(?P<node>\*|\d+)(\.(?P<process>[\w-]+))?"
    r"(:(?P<when>(start|load|ready|probe|checks|bench\d*|proof|term|request\d*)?(\+\d+(\.\d+)?)?))?"
)


@dataclass(frozen=True)
class Signal:
    """A signal the runner sends: to a process of a node, ``seconds`` after a phase begins.

    ``phase`` is empty for seconds from the start of the run.
    """

    number: int
    node: int
    process: str
    phase: str
    seconds: float
    text: str


def sort(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[Signal, ...]]:
    """Stand-ins' faults and the runner's.

    Raises:
        ValueError: a text is no fault; says what would be.
    """
    own: list[str] = []
    signals: list[Signal] = []
    for text in _split(texts):
        shape = _SHAPE.fullmatch(text)
        if not shape:
            raise ValueError(
                f"--fault: found {text!r}, expected WHAT[=ARG]@NODE[.PROCESS][:WHEN], such as "
                "'crash@1:load' or 'kill9@0.proxy:bench'"
            )
        process = shape["process"] or ""
        if process in RUNNER_PROCESSES:
            signals.append(_signal(text, shape))
        elif shape["what"] not in STAND_IN:
            raise ValueError(
                f"--fault: found {shape['what']!r}, expected one of {', '.join(STAND_IN)}"
            )
        elif shape["when"] and shape["when"].split("+")[0] in ("probe", "checks", "proof"):
            raise ValueError(
                f"--fault {text!r}: a server knows the moments start, load, ready, requestN, "
                "benchN, term and +SECONDS"
            )
        else:
            own.append(text)
    return tuple(own), tuple(signals)


def deadly(texts: Sequence[str]) -> tuple[str, ...]:
    """The faults after which a run should not pass, if they came true while it mattered."""
    return tuple(
        text
        for text in _split(texts)
        if (shape := _SHAPE.fullmatch(text))
        and shape["what"] in _DEADLY
        and shape["when"] != "term"
    )


def _split(texts: Sequence[str]) -> list[str]:
    return [part.strip() for entry in texts for part in entry.split(";")]


def _signal(text: str, shape: re.Match[str]) -> Signal:
    if shape["what"] not in SIGNALS:
        raise ValueError(
            f"--fault {text!r}: {shape['process']} is no stand-in; it can only be sent "
            f"{', '.join(SIGNALS)}"
        )
    if shape["node"] == "*":
        raise ValueError(f"--fault {text!r}: name one node for {shape['process']}")
    moment, _, seconds = (shape["when"] or "+0").partition("+")
    if moment not in ("", *RUNNER_MOMENTS):
        raise ValueError(
            f"--fault {text!r}: {shape['process']} knows the moments "
            f"{', '.join(RUNNER_MOMENTS)} and +SECONDS"
        )
    return Signal(
        SIGNALS[shape["what"]],
        int(shape["node"]),
        shape["process"],
        moment,
        float(seconds or 0),
        text,
    )
