"""Hostile files through validate, fix and plan: 20,000 mutated cases, and those written by hand.

    python -m tests.fuzz [--examples 20000] [--start 0] [--jobs 2] [--keep DIR]
    python -m tests.fuzz --file FAILED.yaml

Each file has to end with exit 0 or 2, within 5 s of processor time and 300 MB.
The examples are numbered; a number makes the same file everywhere. A file that
fails is kept, made smaller, and named; exit 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fuzz import hostile, limits, mutate

#: Examples between which the processes are new ones: what commands remember is not one file's.
_BATCH = 2000
#: Commands that one example goes through besides ``validate``; the others take their turns.
_TURNS = (("plan",), ("fix",), ("formats",), ())
#: Of twenty turns, those of files that are no cases: the command, what they are made of.
_OTHERS = {5: ("profile", (mutate.PROFILE,)), 15: ("matrix", (mutate.MATRIX,))}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--examples", type=int, default=20_000)
    options.add_argument("--start", type=int, default=0, help="the first example's number")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="for what fails")
    options.add_argument("--file", type=Path, help="only this file")
    args = options.parse_args(argv)
    if args.file:
        return _one(args.file)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        failed = _written(Path(folder), args.keep)
        print(f"{len(hostile.files())} files by hand: {time.monotonic() - started:.0f} s")
        last = args.start + args.examples - 1
        for first in range(args.start, last + 1, _BATCH):
            part = range(first, min(first + _BATCH, last + 1))
            workers = [
                _worker(args, part[job :: args.jobs], Path(folder)) for job in range(args.jobs)
            ]
            for worker in workers:
                failed |= os.waitpid(worker, 0)[1] != 0
    seconds = time.monotonic() - started
    print(f"examples {args.start} to {last}: {'FAILED' if failed else 'good'}, {seconds:.0f} s")
    return int(failed)


def _one(path: Path) -> int:
    outcomes = {command: limits.apart(command, path) for command in limits.COMMANDS}
    for command, found in outcomes.items():
        told = found.fault or "good"
        print(f"{command}: {told} ({found.seconds:.2f} s, {found.megabytes:.0f} MB)")
    return int(any(found.fault for found in outcomes.values()))


def _written(folder: Path, keep: Path) -> bool:
    """The files written by hand, each in a process of its own; whether one failed."""
    failed = False
    path = folder / "case.yaml"
    for name, data in hostile.files().items():
        path.write_bytes(data)
        for command in limits.COMMANDS:
            found = limits.apart(command, path)
            if found.fault:
                failed = True
                _tell(keep, f"{name}-{command}".replace(" ", "-"), data, command, found.fault)
    return failed


def _worker(args: argparse.Namespace, numbers: range, folder: Path) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        limits.room()
        code = _examples(args, numbers, folder / f"{numbers.start}")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def _examples(args: argparse.Namespace, numbers: range, folder: Path) -> int:
    folder.mkdir()
    path = folder / "case.yaml"
    parents = max(limits.peak() - limits.OWN, 0.0)
    failed, count, slowest = 0, 0, 0.0
    for number in numbers:
        turn = number // args.jobs
        commands: Sequence[str] = ("validate", *_TURNS[turn % len(_TURNS)])
        data = mutate.example(number)
        if turn % 20 in _OTHERS:
            command, bases = _OTHERS[turn % 20]
            commands, data = (command,), mutate.example(number, bases)
        path.write_bytes(data)
        count += 1
        for command in commands:
            found = limits.judged(command, path)
            slowest = max(slowest, found.seconds)
            heavy = found.megabytes - parents > limits.MEGABYTES
            if not found.fault and not heavy:
                continue
            failed += 1
            fault = found.fault or f"{found.megabytes:.0f} MB after {count} examples"
            small = data if heavy else smaller(data, path, command, fault)
            _tell(args.keep, f"{number}-{command}", small, command, fault)
            if heavy or failed >= 20:
                print(f"{numbers.start}: given up after {count} examples", flush=True)
                return 1
    used = time.process_time()
    told = f"slowest {slowest:.2f} s, peak {limits.peak():.0f} MB, {used:.0f} s of processor time"
    print(f"{numbers.start}: {count} examples, {told}")
    return int(failed > 0)


def _tell(keep: Path, name: str, data: bytes, command: str, fault: str) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{name}.yaml"
    path.write_bytes(data)
    print(f"FAILED {name}: {fault}\n  python -m tests.fuzz --file {path}", flush=True)


def smaller(data: bytes, path: Path, command: str, fault: str) -> bytes:
    """The file without the lines that the failure does not need."""
    if "too slow" in fault:
        return data
    kind = fault.rpartition(" at ")[2]

    def still(lines: list[bytes]) -> bool:
        path.write_bytes(b"\n".join(lines))
        return limits.judged(command, path).fault.rpartition(" at ")[2] == kind

    return b"\n".join(_reduced(data.split(b"\n"), still))


def _reduced(lines: list[bytes], still: Callable[[list[bytes]], bool]) -> list[bytes]:
    size, tries = max(len(lines) // 2, 1), 0
    while size and tries < 200:
        at = 0
        while at < len(lines) and tries < 200:
            tries += 1
            fewer = lines[:at] + lines[at + size :]
            if still(fewer):
                lines = fewer
            else:
                at += size
        size //= 2
    return lines


if __name__ == "__main__":
    sys.exit(main())
