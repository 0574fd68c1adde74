"""Rehearsal stand-in of the package memcache_hybrid; put rehearsal/lib on PYTHONPATH."""

import sys
from pathlib import Path


class MetaService:
    """The pool's meta service; `main` does not return."""

    @staticmethod
    def main() -> None:
        """Run until SIGTERM."""
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        from rehearsal.handoff import memcache

        memcache.main()
