"""A small arithmetic data set in the format of GSM8K, for models too small for the real one.

Enters: a directory, a seed, sizes. Leaves: `train.jsonl` and `test.jsonl` there (AISBench wants
both), one `{"question", "answer"}` object a line, the answer ending in `#### <number>`. Touches
only these two files; the same seed and sizes give the same bytes on every machine.

    python -m ci.datasets DIRECTORY [--seed N] [--test N] [--train N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from steps.bench_drivers.practice import questions, write_arithmetic

__all__ = ["main", "questions", "write_arithmetic"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ci.datasets", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("directory", type=Path)
    for option, default in (("--seed", 0), ("--test", 64), ("--train", 8)):
        parser.add_argument(
            option, type=int, default=default, metavar="N", help="default: %(default)s"
        )
    options = parser.parse_args(arguments)
    try:
        write_arithmetic(
            options.directory, seed=options.seed, test=options.test, train=options.train
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"{options.directory}: {error.strerror}; choose a directory that can be written",
            file=sys.stderr,
        )
        return 3
    print(options.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
