"""tell: how the jobs of a comment, or of a night, went, where people look.

Enters: what the jobs left, the entries of the matrix, GitHub's API. Leaves: Markdown on standard
output. Touches: the API: the reply to the comment, or one comment on an issue, changed in place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ci.nightly import ask, reply
from ci.nightly.hub import Hub
from steps.core import door, settings
from steps.core.case.numbers import loads
from steps.core.errors import InfraError, UsageError
from steps.core.record.rundir import read_json
from steps.core.redaction import here
from steps.core.settings import GitHubJob

#: The hidden mark of the comment on the issue of the nights.
NIGHT = "<!-- multinode: the last night -->"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("home", type=Path, help="where what the jobs left has been fetched to")
    parser.add_argument("--entries", required=True, help="JSON, as `nox -s matrix` prints it")
    parser.add_argument("--about", default="", help="Markdown that says what was tested")
    parser.add_argument("--issue", default="", help="number of an issue that hears of it")


def _entries(text: str) -> list[dict[str, Any]]:
    try:
        found = loads(text)["include"]
        return [entry for entry in found if entry["name"] and entry["soc"]]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            "--entries: no matrix of jobs", "Give what `nox -s matrix` says."
        ) from None


def _links(hub: Hub, job: GitHubJob) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The jobs of the run and where its artifacts are; none when GitHub does not say."""
    if not (hub.api and job.run):
        return {}, {}
    try:
        files = {
            name: f"{job.url}/artifacts/{number}" for name, number in hub.files(job.run).items()
        }
        return hub.jobs(job.run), files
    except InfraError as error:
        door.warn(f"no links to jobs: {error}")
        return {}, {}


def work(arguments: argparse.Namespace) -> int:
    """Say it."""
    job = settings.github()
    entries = _entries(arguments.entries)
    if arguments.issue and not arguments.issue.isdecimal():
        raise UsageError(f"--issue: found {arguments.issue!r}, expected a number")
    hub = Hub(job.api, job.token, job.repository)
    jobs, files = _links(hub, job)
    rows = [reply.told(entry, arguments.home, jobs, files) for entry in entries]
    text = here().text(reply.text(arguments.about, rows, job.url))
    print(text)
    said = ask.comment_in(read_json(Path(job.event))) if job.event else None
    if said and said.pull:
        hub.say(said.pull, said.mark, text, said.created)
    elif arguments.issue:
        hub.say(int(arguments.issue), NIGHT, text)
    return 0


main = door.Verb("tell", __doc__, _options, work)

if __name__ == "__main__":
    sys.exit(main())
