"""``python -m tests.again``: the tests that may be asked once more, one a line; or why none may.

Enters: what the last test run remembered (``tests/conftest.py``). Leaves: exit code 0 and node
ids, or 1 and a reason on standard error. Touches: reads pytest's cache. Standard library only.

Only a test marked ``timing`` may be late: it holds real processes to real deadlines. Any other
failure counts at once, and so do many late ones together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FILE = Path(".pytest_cache/v/multinode/failed")
#: More late tests than this are no accident.
MOST = 8
TESTS_FAILED = 1


def judge(text: str) -> tuple[list[str], str]:
    """The tests to ask again, and why none is; one of both is empty."""
    said = json.loads(text)
    failed: dict[str, bool] = said["failed"]
    untimed = [name for name, timed in failed.items() if not timed]
    if said["exit"] != TESTS_FAILED or not failed:
        return [], f"pytest ended with code {said['exit']}, which is not 'tests failed'"
    if untimed:
        return [], f"not bound to time, so not asked again: {', '.join(untimed)}"
    if len(failed) > MOST:
        return [], f"{len(failed)} tests bound to time failed, more than {MOST}: no accident"
    return list(failed), ""


def main() -> int:
    """The command line."""
    if not FILE.is_file():
        print(f"no test run is remembered in {FILE}", file=sys.stderr)
        return 1
    names, reason = judge(FILE.read_text(encoding="utf-8"))
    print("\n".join(names) if names else reason, file=sys.stdout if names else sys.stderr)
    return 0 if names else 1


if __name__ == "__main__":
    sys.exit(main())
