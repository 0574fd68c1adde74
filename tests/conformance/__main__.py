"""Ask a running server: ``python -m tests.conformance URL``; exit code 1 where it differs."""

from __future__ import annotations

import argparse
import sys

from tests.conformance.client import CHECKS, Server


def main() -> int:
    """One line a check."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("url", help="such as http://127.0.0.2:8080")
    server = Server(parser.parse_args().url).meet()
    failed = 0
    for check in CHECKS:
        try:
            check(server)
            print(f"same    {check.__name__}", flush=True)
        except Exception as error:
            failed += 1
            print(f"DIFFERS {check.__name__}: {error}", flush=True)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks as vLLM 0.32 does")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
