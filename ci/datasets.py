"""A small arithmetic data set in the format of GSM8K, for models too small for the real one.

Enters: a directory, a seed, sizes. Leaves: `train.jsonl` and `test.jsonl` there (AISBench wants
both), one `{"question", "answer"}` object a line, the answer ending in `#### <number>`. Touches
only these two files; the same seed and sizes give the same bytes on every machine.

    python -m ci.datasets DIRECTORY [--seed N] [--test N] [--train N]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

LARGEST = 20
"""Operands are 1 to this: what SmolLM2-135M sometimes gets right: the score can move."""


def questions(seed: int, count: int) -> Iterator[dict[str, str]]:
    """Sums and differences in GSM8K's format, none twice while there are others left."""
    pairs = [
        (a, b, sign)
        for a in range(1, LARGEST + 1)
        for b in range(1, LARGEST + 1)
        for sign in "+-"
        if a >= b
    ]
    source = random.Random(seed)
    for start in range(0, count, len(pairs)):
        for a, b, sign in source.sample(pairs, min(len(pairs), count - start)):
            result = a + b if sign == "+" else a - b
            yield {
                "question": f"What is {a} {sign} {b}?",
                "answer": f"{a} {sign} {b} = {result}\n#### {result}",
            }


def write_arithmetic(directory: Path, *, seed: int = 0, test: int = 64, train: int = 8) -> Path:
    """Write both files and return the directory.

    Args:
        test: questions to ask; `train` those for few-shot examples, which no case of ours uses.

    Raises:
        ValueError: a size below 1: AISBench does not start on an empty file.
        OSError: the directory cannot be written.
    """
    if test < 1 or train < 1:
        raise ValueError(
            f"a data set needs a question in both files, found test={test}, train={train}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    every = [json.dumps(question) + "\n" for question in questions(seed, train + test)]
    (directory / "train.jsonl").write_text("".join(every[:train]), encoding="utf-8")
    (directory / "test.jsonl").write_text("".join(every[train:]), encoding="utf-8")
    return directory


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
