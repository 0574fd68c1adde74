"""The door of every command: parser, output, last handler, exit code.

Enters: a parser, and the function of a verb. Leaves: its ``main``, which always comes back with
an exit code. Touches: the terminal; when the harness itself fails, a file with the traceback.

Nothing here may fail: standard library only, and whatever cannot be printed is dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from steps.core.errors import CaseError, Exit, InfraError, MultinodeError

#: What tells a reader of the output nothing: it went away, or there never was one.
_GONE = (errno.EPIPE, errno.EBADF, errno.EIO)
_NAMES = ("stdin", "stdout", "stderr")
TRACEBACK = "harness-error.log"


class Main(Protocol):
    """The ``main`` of a verb: arguments, or those of the process, to an exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the verb."""


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows ``doc`` as it is written."""
    return argparse.ArgumentParser(
        prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def verb(
    options: Callable[[], argparse.ArgumentParser],
    work: Callable[[argparse.Namespace], int],
    *,
    more: bool = False,
) -> Main:
    """The ``main`` of a verb.

    Args:
        more: arguments that the parser does not know are no mistake; ``work`` finds them as
            ``arguments.more``.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        _open_streams()
        made = options()
        arguments, rest = made.parse_known_args(argv)
        if rest and not more:
            made.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.more = rest
        return guarded(lambda: work(arguments))

    return main


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


# The last handler

_home: Path | None = None


def keep_in(directory: Path) -> None:
    """Name the directory of the run: the traceback of a failure belongs there."""
    global _home
    _home = directory


def failure(error: BaseException) -> InfraError:
    """The harness's own failure as an error with one line; its traceback goes into a file."""
    if isinstance(error, ModuleNotFoundError) and not _ours(error.name):
        return InfraError(
            f"the Python package {error.name!r} is not installed; nox installs what is needed, "
            "setup.cfg lists it"
        )
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
        print(f"{error}\n{count} problem{'s' if count != 1 else ''} found", file=sys.stderr)
        return int(error.exit_code)
    if isinstance(error, OSError) and error.filename:
        error = InfraError(f"{error.filename}: {error.strerror or error}")
    told = error if isinstance(error, MultinodeError) else failure(error)
    print(f"error: {told}", file=sys.stderr)
    return int(told.exit_code)


def _keep(error: BaseException) -> str:
    """Write the traceback where the run is, else into a directory of its own; says where."""
    import tempfile

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for home in (_home, None):
        with contextlib.suppress(OSError):
            path = (home or Path(tempfile.mkdtemp(prefix="multinode-"))) / TRACEBACK
            with path.open("a", encoding="utf-8", errors="replace") as out:
                out.write(_without_secrets(text))
            return str(path)
    return "these words: no file could be written for more"


def _without_secrets(text: str) -> str:
    from steps.core import settings
    from steps.core.redaction import Redactor

    return Redactor.of_environment(settings.inherited()).text(text)


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


def _open_streams() -> None:
    """Let the standard streams be there, take any sign, and fail at nothing.

    A closed one is opened on the null device: the next file would get its number otherwise, and
    be written to by every process that is started.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if number == 0:
            sys.stdin = stream or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        elif stream is None or (
            stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper)
        ):
            setattr(sys, name, _unfailing(number, stream))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _unfailing(number: int, before: io.TextIOWrapper | None) -> io.TextIOWrapper:
    with contextlib.suppress(OSError, ValueError):
        if before:
            before.flush()
    raw = _Output(number, "wb", closefd=False)
    errors = before.errors if before and before.errors != "strict" else "replace"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors=errors,
        line_buffering=before.line_buffering if before else False,
        write_through=before.write_through if before else False,
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
