"""A small arithmetic data set in the format of GSM8K, for models too small for the real one.

Enters: a directory, a seed, sizes. Leaves: `train.jsonl` and `test.jsonl` there (AISBench wants
both), one `{"question", "answer"}` object a line, the answer ending in `#### <number>`. Touches
only these two files; the same seed and sizes give the same bytes on every machine.

    python -m tests.real.datasets DIRECTORY [--seed N] [--test N] [--train N]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from steps.bench_drivers.practice import questions, write_arithmetic
from steps.core import door
from steps.core.errors import InfraError, UsageError

__all__ = ["main", "questions", "write_arithmetic"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)
    for option, default in (("--seed", 0), ("--test", 64), ("--train", 8)):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help="default: %(default)s"
        )


def work(arguments: argparse.Namespace) -> int:
    """Write the two files."""
    place, sizes = arguments.directory, {"test": arguments.test, "train": arguments.train}
    try:
        write_arithmetic(place, seed=arguments.seed, **sizes)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise InfraError(
            f"{place}: {error.strerror}", "Choose a directory that can be written."
        ) from None
    print(place)
    return 0


main = door.Verb("python -m tests.real.datasets", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
