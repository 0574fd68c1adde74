"""The end of a run on one host: its files fetched and compared, what is left removed.

Enters: a session whose node program has ended, or never began. Leaves: the node's
files in the run directory, errors that say what is left. Touches: the run's directory
on the host.
"""

from __future__ import annotations

import shutil
import tarfile
import time
from collections.abc import Sequence
from typing import Any

from ci.backends.hosts.session import BROKEN, Session, as_infra
from ci.backends.hosts.ssh import Absent
from steps.core.case.numbers import loads
from steps.core.errors import InfraError, MultinodeError
from steps.core.record import arrivals
from steps.core.record.arrivals import CHUNK, SLACK, Inflated, Overrun, Part, told
from steps.core.record.records import Artifact, record_from
from steps.core.record.rundir import read_json, sha256_of

TRIES = 3
#: Seconds that all files of a host may take.
FETCH_SECONDS = 3600.0


class Harvest:
    """What is done on a host at the end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._run_dir = session.request.run_dir
        self._host = session.host
        self._remote = session.remote
        self._verb = "clean"
        self._sizes: dict[str, int] = {}

    def fetch(self) -> None:
        """Bring the node's files here.

        Raises:
            InfraError: they could not be fetched whole; what was followed is kept.
        """
        if not self._session.reachable:
            return
        # A host may allow one session a connection.
        self._session.let_go()
        trouble = ""
        for _ in range(TRIES):
            try:
                self._remote.connect(tries=2)
                lost = self._unpack()
                if lost:
                    more = f"; and {len(lost) - 5} more" if len(lost) > 5 else ""
                    trouble = f"{'; '.join(lost[:5])}{more}"
                    break
                wrong = self._verify()
                if not wrong:
                    return
                trouble = f"differ from the record: {', '.join(wrong[:5])}"
            except (*BROKEN, Overrun, ValueError, RecursionError, MultinodeError) as error:
                trouble = error.message if isinstance(error, MultinodeError) else str(error)
            self._remote.close()
        self._verb = "retire" if self._session.started else "clean"
        stay = f"; they stay in {self._session.place}/run there" if self._session.started else ""
        raise InfraError(f"{self._host}: not all files could be fetched{stay}: {trouble}")

    def _unpack(self) -> list[str]:
        """Bring the files; those that cannot be kept here, and why."""
        command = self._remote.python(
            "-m", "steps.core.node.keeper", "pack", self._session.place, cwd=self._session.bundle
        )
        channel, out = self._remote.stream(command)
        end = time.monotonic() + FETCH_SECONDS
        room = shutil.disk_usage(self._run_dir.path).free + SLACK
        stream: Any = Inflated(lambda: out.read1(CHUNK), room, lambda: end)
        lost = []
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as archive:
                for member in archive:
                    why = self._take(archive, member)
                    if why:
                        lost.append(told(member.name, why))
                    archive.members = []  # type: ignore[attr-defined]
        except tarfile.TarError as error:
            words = channel.errors().decode("utf-8", "replace").strip().splitlines()
            raise OSError(f"{error}{': ' if words else ''}{''.join(words[-1:])}") from None
        finally:
            channel.close()
        return lost

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        """Keep one file; why it cannot be, or nothing."""
        source = archive.extractfile(member) if member.isreg() else None
        if source is None:
            return "is no regular file"
        try:
            target = arrivals.place(self._run_dir, self._session.index, member.name)
        except arrivals.Refused as error:
            return str(error)
        if target is None:
            return ""
        limit = self._limit(member.name)
        part = Part(member.name, min(member.size, limit), target)
        try:
            part.take(source.read)
            if member.size > limit:
                part.lost = f"has {member.size:,} bytes, though it may have {limit:,}"
            if not part.lost:
                part.keep()
        finally:
            part.drop()
        if target == self._run_dir.node(self._session.index).record:
            self._sizes = {f"{target.parent.name}/{a.path}": a.size for a in self._artifacts()}
        return part.lost

    def _limit(self, name: str) -> int:
        """What a file may have: what the record says, else half of the room that is left."""
        known = self._sizes.get(name)
        return shutil.disk_usage(self._run_dir.path).free // 2 if known is None else known

    def _artifacts(self) -> Sequence[Artifact]:
        record = record_from(read_json(self._run_dir.node(self._session.index).record))
        return record.artifacts if record else ()

    def _verify(self) -> list[str]:
        """Artifacts that are not here as the record has them."""
        node = self._run_dir.node(self._session.index)
        wrong = []
        for artifact in self._artifacts():
            path = node.path / artifact.path
            if not path.is_file() or sha256_of(path) != artifact.sha256:
                wrong.append(artifact.path)
        return wrong

    def clean(self) -> None:
        """End and remove everything of the run on the host; files not fetched whole stay.

        Raises:
            InfraError: something is left, and what.
        """
        if not self._session.reachable:
            return
        try:
            text = self._call_keeper()
        except Absent:  # it never came there whole
            return
        except InfraError:
            self._remote.close()
            text = self._call_keeper()
        try:
            found = loads(text)
        except ValueError:
            found = {"left": [], "removed": False}
        if found["left"]:
            left = ", ".join(found["left"])
            raise InfraError(f"{self._host}: processes were left and have been killed: {left}")
        if not found["removed"] and self._verb == "clean":
            raise InfraError(f"{self._host}: {self._session.place} could not be removed")

    def _call_keeper(self) -> str:
        """What cleaning prints; the connection may be gone by now."""
        with as_infra(self._host):
            self._remote.connect(tries=2)
            return self._remote.call(
                "-m",
                "steps.core.node.keeper",
                self._verb,
                self._session.place,
                cwd=self._session.bundle,
                seconds=30.0,
            )
