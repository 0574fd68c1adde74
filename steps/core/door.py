"""The door of every command: parser, output, last handler, exit code.

Enters: the options and the function of a verb. Leaves: its ``main``, which always comes back with
an exit code. Touches: the terminal; when the harness itself fails, a file with the traceback.

Nothing here may fail: standard library only, and whatever cannot be printed is dropped. Whatever
is printed passes :mod:`steps.core.foreign`; colours and orders of our own go through :func:`own`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import math
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from steps.core import foreign
from steps.core.errors import CaseError, Exit, InfraError, MultinodeError

#: What tells a reader of the output nothing: it went away, or there never was one.
_GONE = (errno.EPIPE, errno.EBADF, errno.EIO)
_NAMES = ("stdin", "stdout", "stderr")
TRACEBACK = "harness-error.log"
#: Package -> the extra of ours that brings it; what is not here, the node side itself needs.
EXTRAS = {
    **dict.fromkeys(("kubernetes", "urllib3", "websocket"), "k8s"),
    **dict.fromkeys(("rich", "jinja2", "markupsafe"), "runner"),
    **dict.fromkeys(("matplotlib", "numpy"), "report"),
}


@dataclass(frozen=True)
class Verb:
    """The ``main`` of a command: arguments, or those of the process, to an exit code.

    Attributes:
        doc: what ``--help`` says, as it is written.
        more: arguments that no option takes are no mistake; ``work`` has them as ``more``.
    """

    name: str
    doc: str | None
    options: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]
    more: bool = False

    def parser(self) -> argparse.ArgumentParser:
        """The parser of its options."""
        made = argparse.ArgumentParser(
            prog=self.name,
            description=self.doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=not self.more,  # --on is passed on, not --only written shorter
        )
        self.options(made)
        return made

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Parse, work, and come back with the exit code."""
        from steps.core import redaction

        redaction.here.cache_clear()
        _open_streams()
        made = self.parser()
        arguments, rest = made.parse_known_args(argv)
        if rest and not self.more:
            made.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.more = rest
        return guarded(lambda: self.work(arguments))


def passing() -> argparse.ArgumentParser:
    """For some of the options that a verb passes on; ``parse_known_args`` leaves the others."""
    return argparse.ArgumentParser(add_help=False, allow_abbrev=False)


def no_options(_parser: argparse.ArgumentParser) -> None:
    """For a command that takes none."""


def at_least(least: float, kind: Callable[[str], float] = float) -> Callable[[str], float]:
    """The type of an option: a number, and not nan or endless, which no comparison refuses."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value < math.inf:
            wanted = f"a number of at least {least:g}"
            raise argparse.ArgumentTypeError(f"found {text[:40]!r}, expected {wanted}")
        return value

    return number


def warn(text: str) -> None:
    """Say that something beside the result went wrong; nobody has to read it."""
    with contextlib.suppress(OSError, ValueError):
        said = foreign.block(_without_secrets(f"warning: {text}"))
        print(said, file=sys.stderr, flush=True)


def guarded(work: Callable[[], int]) -> int:
    """Run ``work``; whatever it raises becomes a message and an exit code."""
    try:
        return int(work())
    except (Exception, KeyboardInterrupt) as error:
        return _ended_by(error)


def install() -> None:
    """Let what fails outside of a verb, such as its imports or a thread, end in the same words."""

    def last(_kind: object, error: BaseException, _trace: object) -> None:
        sys.exit(_ended_by(error))

    def of_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None and not isinstance(told.exc_value, SystemExit):
            _ended_by(told.exc_value)

    _open_streams()
    _less_optimized()
    sys.excepthook = last
    threading.excepthook = of_thread
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# The last handler

_home: Path | None = None


def keep_in(directory: Path) -> None:
    """Name the directory of the run: the traceback of a failure belongs there."""
    global _home
    _home = directory


def lacking(error: ImportError) -> str:
    """What is not installed, and the command that brings it."""
    package = (error.name or "").partition(".")[0]
    return f"the Python package {package!r} is not installed: {bringing(package)}"


def bringing(package: str) -> str:
    """The command that brings a package of an extra, or of the node side."""
    extra = f"[{EXTRAS[package]}]" if package in EXTRAS else ""
    return f"python3 -m pip install -e '.{extra}' brings it; nox installs it by itself"


def failure(error: BaseException) -> InfraError:
    """The harness's own failure as an error with one line; its traceback goes into a file."""
    if isinstance(error, ModuleNotFoundError) and not _ours(error.name):
        return InfraError(lacking(error))
    what = _without_secrets(" ".join(str(error).split()))[:500].rstrip(".")
    return InfraError(
        f"the harness itself failed: {type(error).__name__}: {what}. Please report it with "
        f"{_keep(error)}"
    )


def _ours(module: str | None) -> bool:
    return (module or "").split(".")[0] in ("", "ci", "k8s", "steps")


def _ended_by(error: BaseException) -> int:
    """Say what ended the command; its exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return int(Exit.INTERRUPTED)
    if isinstance(error, CaseError):
        count = len(error.problems)
        text = f"{error}\n{count} problem{'s' if count != 1 else ''} found"
        print(_without_secrets(text), file=sys.stderr)
        return int(error.exit_code)
    if isinstance(error, OSError) and (error.filename or isinstance(error, BrokenPipeError)):
        where = f"{error.filename}: " if error.filename else ""
        error = InfraError(f"{where}{error.strerror or error}")
    told = error if isinstance(error, MultinodeError) else failure(error)
    print(foreign.block(_without_secrets(f"error: {told}")), file=sys.stderr)
    return int(told.exit_code)


def _keep(error: BaseException) -> str:
    """Write the traceback where the run is, else into a directory of its own; says where."""
    import tempfile

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for home in (_home, None):
        with contextlib.suppress(OSError):
            path = (home or Path(tempfile.mkdtemp(prefix="multinode-"))) / TRACEBACK
            with open(path, "a", encoding="utf-8", errors="replace", opener=_no_link) as out:
                out.write(_without_secrets(text))
            return str(path)
    return "these words: no file could be written for more"


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _without_secrets(text: str) -> str:
    from steps.core.redaction import here

    return here().text(text)


# Output that never fails


class _Output(io.FileIO):
    """A standard stream; what cannot be written is dropped, and a full device is said once."""

    full = False

    def write(self, data: object) -> int:
        """Write as much as a file would, or pretend to."""
        view = memoryview(data)  # type: ignore[arg-type]
        while True:
            try:
                written = super().write(view)
            except OSError as error:
                if error.errno not in _GONE and not self.full:
                    self.full = True
                    text = f"warning: the output is lost: {error.strerror}\n"
                    with contextlib.suppress(OSError):
                        os.write(2, text.encode())
                return view.nbytes
            if written is not None:
                return written
            select.select((), (self,), ())  # somebody made the stream non-blocking


class _Text(io.TextIOWrapper):
    """A standard stream that shows text and obeys none."""

    _fresh = True

    def write(self, text: str) -> int:
        """Write what a reader may see of it."""
        super().write(foreign.printed(text, self._fresh))
        last = text.rpartition("\n")
        self._fresh = (self._fresh or bool(last[1])) and not last[2].strip()
        return len(text)


def own(stream: TextIO) -> TextIO:
    """A standard stream for what we made of clean parts: colours, GitHub's commands."""
    return cast(TextIO, _Own(stream)) if isinstance(stream, _Text) else stream


class _Own:
    """Writes as it is told."""

    def __init__(self, stream: _Text) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it as it is."""
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_streams() -> None:
    """Let the standard streams be there, take any sign, and fail at nothing.

    A closed one is opened on the null device: the next file would get its number otherwise, and
    be written to by every process that is started.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            made = os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False)
            setattr(sys, name, made)
            setattr(sys, f"__{name}__", made)
        stream = getattr(sys, name)
        if number and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _unfailing(number, stream))


def _unfailing(number: int, before: io.TextIOWrapper) -> io.TextIOWrapper:
    with contextlib.suppress(OSError):
        before.flush()
    return _Text(
        io.BufferedWriter(_Output(number, "wb", closefd=False)),
        before.encoding,
        "replace" if before.errors == "strict" else before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )


def _less_optimized() -> None:
    """Begin again without ``-OO``: it drops the docstrings that cerberus reads its rules from."""
    if sys.flags.optimize < 2 or sys.argv[:1] != ["-m"]:
        return
    from steps.core import settings

    given = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    words = [word for word in (re.sub("^-O+", "-", word) for word in given) if word != "-"]
    env = settings.inherited()
    if words != given or env.get("PYTHONOPTIMIZE", "1") != "1":
        less = {"PYTHONOPTIMIZE": "1"} if "PYTHONOPTIMIZE" in env else {}
        os.execve(sys.executable, [sys.executable, *words, *sys.argv[1:]], {**env, **less})
