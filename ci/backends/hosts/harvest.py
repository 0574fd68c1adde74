"""The end of a run on one host: its files fetched and compared, what is left removed.

Enters: a session whose node program has ended, or never began. Leaves: the node's
files in the run directory, errors that say what is left. Touches: the run's directory
on the host.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from ci.backends.hosts.session import BROKEN, Session, as_infra
from ci.backends.hosts.ssh import Absent
from steps.core.case.numbers import loads
from steps.core.errors import InfraError, MultinodeError
from steps.core.plan.plan import LEADER
from steps.core.record.records import record_from
from steps.core.record.rundir import read_json, sha256_of


class Harvest:
    """What is done on a host at the end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._run_dir = session.request.run_dir
        self._host = session.host
        self._remote = session.remote
        self._verb = "clean"

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
        for _ in range(3):
            try:
                self._remote.connect(tries=2)
                self._unpack()
                wrong = self._verify()
                if not wrong:
                    return
                trouble = f"differ from the record: {', '.join(wrong[:5])}"
            except (*BROKEN, MultinodeError) as error:
                trouble = error.message if isinstance(error, MultinodeError) else str(error)
            self._remote.close()
        self._verb = "retire" if self._session.started else "clean"
        stay = f"; they stay in {self._session.place}/run there" if self._session.started else ""
        raise InfraError(f"{self._host}: not all files could be fetched{stay}: {trouble}")

    def _unpack(self) -> None:
        command = self._remote.python(
            "-m", "steps.core.node.keeper", "pack", self._session.place, cwd=self._session.bundle
        )
        channel, out = self._remote.stream(command)
        try:
            with tarfile.open(fileobj=out, mode="r|gz") as archive:
                for member in archive:
                    target = self._target(member)
                    source = archive.extractfile(member)
                    if target is None or source is None:
                        continue
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    part = target.with_name(f".{target.name}.part")
                    part.touch(0o600)
                    with part.open("wb") as copy:
                        while chunk := source.read(1 << 20):
                            copy.write(chunk)
                    part.replace(target)
        except tarfile.TarError as error:
            words = channel.errors().decode("utf-8", "replace").strip().splitlines()
            raise OSError(f"{error}{': ' if words else ''}{''.join(words[-1:])}") from None
        finally:
            channel.close()

    def _target(self, member: tarfile.TarInfo) -> Path | None:
        """Where a file goes: the node's own, and from the leader what others lack here."""
        name = PurePosixPath(member.name)
        if not member.isreg() or name.is_absolute() or ".." in name.parts:
            return None
        target = self._run_dir.path / name
        if name.parts[0] == f"node-{self._session.index}":
            return target
        from_others = self._session.index == LEADER and name.name in ("record.json", "plan.json")
        return target if from_others and not target.exists() else None

    def _verify(self) -> list[str]:
        """Artifacts that are not here as the record has them."""
        node = self._run_dir.node(self._session.index)
        record = record_from(read_json(node.record))
        wrong = []
        for artifact in record.artifacts if record else ():
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
