"""The `vllm` command of a rehearsal: parse first, and only then load what serving needs."""

from __future__ import annotations

import sys
from typing import NoReturn

from rehearsal.base import settings
from rehearsal.engine import cli


def main() -> NoReturn:
    """Entry of `rehearsal/bin/vllm`."""
    environment = settings.read("server")
    args = cli.parse(sys.argv[1:])
    from rehearsal.engine import serve

    serve.run(args, environment)
