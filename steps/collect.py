"""collect: bring everything worth keeping into the node's directory.

Enters: a :class:`NodeRun` whose processes have stopped. Leaves: logs without
secrets, Ascend's process logs of this run, and a list of all files with size
and digest. Touches: the node's directory; reads ``~/ascend/log``, never
deletes there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from steps.core import settings
from steps.core.node import alone
from steps.core.node.noderun import NodeRun, free_bytes
from steps.core.record import cleaning, portable
from steps.core.record.records import Artifact
from steps.core.record.rundir import sha256_of

PLOG_LIMIT = 2 << 30


#: Files that tell of the run itself; written to until its very end.
_OWN = ("events.jsonl", "record.json", "node.log", ".record.lock")


def run(run: NodeRun, written: Collection[str] = ()) -> tuple[Artifact, ...]:
    """Collect; what cannot be read is named, never a reason to stop.

    Args:
        written: names of files that are still being written; who writes them cleans them.
    """
    plogs(run, settings.read().ascend_log)
    if changed := portable.make(run.dir.path):
        run.events.emit("warning", text=changed)
    clean(run, written)
    return artifacts(run, written)


def plogs(run: NodeRun, source: Path) -> None:
    """Copy Ascend process logs that changed since the run began."""
    copied = size = 0
    with contextlib.suppress(OSError):
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            try:
                stat = path.stat()
                if not path.is_file() or stat.st_mtime < run.started - 1:
                    continue
                if size + stat.st_size > min(PLOG_LIMIT, free_bytes(run.dir.path) // 2):
                    run.events.emit("warning", text=f"Ascend logs over {size >> 20} MiB left out")
                    break
                target = run.dir.path / "ascend" / path.relative_to(source)
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                shutil.copy2(path, target)
                target.chmod(0o600)
            except OSError as error:
                run.events.emit("warning", text=f"{path} was not collected: {error}")
                continue
            copied, size = copied + 1, size + stat.st_size
    if copied:
        run.events.emit("note", text=f"collected {copied} Ascend logs, {size >> 10} KiB")


def clean(run: NodeRun, written: Collection[str] = ()) -> None:
    """Take secrets out of every text file of the node."""
    for path in cleaning.texts(run.dir.path):
        if path.name not in ("events.jsonl", "record.json", *written):
            try:
                cleaning.clean(path, run.redactor)
            except OSError as error:
                run.events.emit("warning", text=f"{path.name} was not cleaned: {error}")
    work = run.dir.path / "work"
    with contextlib.suppress(OSError):
        work.rmdir()


def artifacts(run: NodeRun, written: Collection[str] = ()) -> tuple[Artifact, ...]:
    """Every file of the node's directory, but those still being written."""
    found = []
    for path in _files(run.dir.path):
        if path.name in (*_OWN, *written):
            continue
        with contextlib.suppress(OSError):
            name = str(path.relative_to(run.dir.path))
            found.append(Artifact(name, path.stat().st_size, sha256_of(path)))
    return tuple(found)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _standalone(run_: alone.StepRun) -> None:
    run_.collected = run(run_, run_.written())
    size = sum(artifact.size for artifact in run_.collected)
    run_.events.emit("note", text=f"collected {len(run_.collected)} files, {size >> 10} KiB")


main = alone.step("collect", __doc__, lambda _: [("collect", _standalone)], everywhere=True)

if __name__ == "__main__":
    raise SystemExit(main())
