"""How long validating many cases takes, in one process: target 500 files in 3 s.

    python benchmarks/validate_speed.py [--files 500] [--case FILE ...] [--profile]

Copies of the cases (default: all of configs/), each with a name and a comment
of its own, so that nothing is remembered from one file to the next.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from steps.validate import default_paths, validate

TARGET_SECONDS = 3.0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; 1 when the target is missed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--files", type=int, default=500)
    options.add_argument("--case", nargs="*", type=Path, help="cases to copy")
    options.add_argument("--profile", action="store_true")
    args = options.parse_args(argv)
    root = Path(__file__).resolve().parent.parent / "configs"
    cases = args.case or default_paths(root)
    with tempfile.TemporaryDirectory(prefix="validate-speed-") as folder:
        paths = []
        for number in range(args.files):
            source = cases[number % len(cases)]
            path = Path(folder) / f"{number}-{source.name}"
            text = source.read_text(encoding="utf-8")
            path.write_text(f"{text.rstrip()}\n# copy {number}\n", encoding="utf-8")
            paths.append(path)
        profile = cProfile.Profile()
        if args.profile:
            profile.enable()
        start, used = time.perf_counter(), time.process_time()
        validate(paths)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        profile.disable()
    print(f"{args.files} files: {seconds:.2f} s ({used:.2f} s of processor time)")
    print(f"a file: {1000 * seconds / args.files:.1f} ms")
    if args.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    return 0 if seconds <= TARGET_SECONDS or args.files > 500 else 1


if __name__ == "__main__":
    sys.exit(main())
