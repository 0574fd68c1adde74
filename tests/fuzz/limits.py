"""One file through the commands, held to limits of processor time and memory.

Enters: the file's bytes. Leaves: an :class:`Outcome`. Touches: a file in a
folder of the caller's; a timer and limits of this process, or of a fork of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps import fix, validate
from steps import resolve as plan
from steps.core.case import excerpt
from steps.core.errors import CaseError, errors_of
from steps.core.plan import profile
from steps.lint import formats

SECONDS = 5.0
MEGABYTES = 300.0
#: What a command may allocate before the system refuses: a bomb ends here, not the machine.
_ROOM = 2 << 30
Command = Callable[[Path], int]


class TooSlow(BaseException):
    """The processor time of one command is used up."""


@dataclass(frozen=True)
class Outcome:
    """How one command ended; ``fault`` is empty when it kept every promise."""

    fault: str
    seconds: float
    megabytes: float = 0.0


def _validate(path: Path) -> int:
    return validate.run([str(path)])


def _formats(path: Path) -> int:
    problems = validate.validate([path])
    for form in formats.FORMATS.values():
        sys.stdout.write(form(problems, [str(path)]))
    return 2 if errors_of(problems) else 0


def _fix(path: Path) -> int:
    return fix.run([str(path)], dry_run=True)


def _plan(path: Path) -> int:
    with tempfile.TemporaryDirectory() as place:
        words = ["--rehearse", "--format", "json", "--run-dir", f"{place}/run"]
        return plan.main(["--case", str(path), *words])


def _profile(path: Path) -> int:
    """The file as a cluster's profile."""
    try:
        profile.load_profile(path)
    except CaseError as error:
        print(formats.as_sarif(error.problems, [str(path)]))
        return 2
    return 0


def _matrix(path: Path) -> int:
    """The file as the nightly's matrix."""
    return validate.run(["configs/quickstart.yaml"], matrix=str(path))


COMMANDS: dict[str, Command] = {
    "validate": _validate,
    "formats": _formats,
    "fix": _fix,
    "plan": _plan,
    "profile": _profile,
    "matrix": _matrix,
}


def judged(command: str, path: Path) -> Outcome:
    """Run a command on a file in this process: exit 0 or 2, no exception, in time."""
    excerpt.lines_of.cache_clear()
    before = time.process_time()
    fault = ""
    try:
        with (
            _in_time(SECONDS),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            code = int(COMMANDS[command](path))
        if code not in (0, 2):
            fault = f"exit {code}: {err.getvalue()[-300:]}"
        elif code == 2 and not out.getvalue() + err.getvalue():
            fault = "exit 2 without a word"
    except TooSlow:
        fault = "too slow: " + _where()
    except (Exception, SystemExit):
        fault = _where()
    return Outcome(fault, time.process_time() - before, peak())


def _where() -> str:
    kind, error, trace = sys.exc_info()
    frames = [f for f in traceback.extract_tb(trace) if "steps" in f.filename]
    last = frames[-1] if frames else None
    place = f"{Path(last.filename).name}:{last.lineno} in {last.name}" if last else ""
    return f"{kind.__name__ if kind else ''}: {str(error)[:200]} at {place}"


def peak() -> float:
    """The most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooSlow

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def room() -> None:
    """Bound what this process may allocate, and its processor time where no handler runs."""
    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))


#: What the commands take before they read a file, in MB; a fork begins with all of its parent's.
OWN = 40.0


def apart(command: str, path: Path) -> Outcome:
    """The same in a fork, whose memory is its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        room()
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        parents = max(peak() - OWN, 0.0)
        found = judged(command, path)
        told = [found.fault, found.seconds, found.megabytes - parents]
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    if not told:
        return Outcome(f"died with status {status}", 30.0)
    fault, seconds, megabytes = json.loads(told)
    if not fault and seconds > SECONDS:
        fault = f"took {seconds:.1f} s"
    if not fault and megabytes > MEGABYTES:
        fault = f"took {megabytes:.0f} MB"
    return Outcome(fault, seconds, megabytes)
