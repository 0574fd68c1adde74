"""ask: a comment on a pull request becomes jobs, or a reply that says why not.

Enters: the event of the comment, GitHub's API, the matrix. Leaves: outputs for the workflow: the
jobs of each SoC, the session and its options, the commits that are pinned. Touches: the API; one
reply on the pull request.

Nothing of the pull request runs here: of its files only ``ci/nightly.yaml`` is read, where the
request is one of this harness, and as data.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.nightly import comment, matrix, reply
from ci.nightly.comment import Asked, Pinned
from ci.nightly.hub import WRITE, Hub, Pull, moment
from ci.nightly.matrix import MATRIX, Entry, Matrix
from steps.core import door, foreign, settings
from steps.core.errors import CaseError, InfraError, UsageError
from steps.core.plan import products
from steps.core.record.rundir import read_json
from steps.core.redaction import here


@dataclass(frozen=True)
class Comment:
    """A comment of the event; ``pull`` is the number of its pull request, 0 on an issue."""

    number: int
    body: str
    login: str
    created: str
    pull: int

    @property
    def line(self) -> str:
        """Its first line, which is the command."""
        return self.body.partition("\n")[0].strip()[:500]

    @property
    def mark(self) -> str:
        """The hidden mark of its reply."""
        return f"<!-- multinode: reply to comment {self.number} -->"


@dataclass(frozen=True)
class Plan:
    """What is started for a comment.

    Attributes:
        repository: of the harness.
        ref: its commit.
    """

    matrix: Matrix
    entries: tuple[Entry, ...]
    session: str
    words: tuple[str, ...]
    repository: str
    ref: str
    about: str


def comment_in(event: Any) -> Comment | None:
    """The comment of an event; None: the event is of another kind."""
    try:
        said, issue = event["comment"], event["issue"]
        return Comment(
            int(said["id"]),
            str(said["body"] or ""),
            str(said["user"]["login"]),
            str(said["created_at"]),
            int(issue["number"]) if issue.get("pull_request") else 0,
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def objections(asked: Asked, said: Comment, pull: Pull, home: str, own: bool) -> Iterator[str]:
    """Why the head of the pull request is not what the author of the comment has read.

    Args:
        home: the repository of the request.
        own: the request changes the harness, whose code has the cluster's credentials.
    """
    if pull.state != "open":
        yield "the pull request is closed"
    if asked.sha:
        if asked.sha != pull.sha:
            yield f"the head of the pull request is {pull.sha} now, not {asked.sha}"
    elif not pull.source:
        yield "the fork is gone: name the commit that you have read"
    elif pull.source != home and own:
        yield "the pull request is from a fork: name the commit that you have read"
    elif pull.source != home and not 0 < pull.pushed < moment(said.created):
        yield f"{pull.source} was pushed to after your comment: name the commit that you have read"


def about(said: Comment, pull: Pull, pinned: Pinned | None, url: str, base: str) -> str:
    """What was asked and is tested, a line of Markdown.

    Args:
        base: what it is compared with; empty: nothing.
    """
    name = pinned.product if pinned else "this harness"
    tested = f"[`{pull.sha[:12]}`]({url}/commit/{pull.sha})"
    against = f" against {foreign.code(base[:80])}" if base else ""
    who = foreign.code(said.login)
    return f"{foreign.code(said.line)} by {who} tests {name} at {tested}{against}."


def plan(hub: Hub, said: Comment, asked: Asked, arguments: argparse.Namespace, url: str) -> Plan:
    """What is to be started.

    Raises:
        UsageError: the request is not what was read, or something that is asked for is not there.
        CaseError: the matrix of the request is none.
    """
    product, ours = arguments.product, matrix.load()
    pull = hub.pull(said.pull)
    for why in objections(asked, said, pull, hub.repository, not product):
        raise UsageError(why, f"{said.body.split()[0]} ... {pull.sha}")
    pinned = Pinned(product, url, pull.sha) if product else None
    base = hub.commit(asked.compare) if pinned and comment.moves(asked) else ""
    words = comment.words(asked, pinned, base)
    for option, word in itertools.pairwise(words):
        if option in ("--product", "--a", "--b"):
            products.read(word)
    theirs = ours if pinned else matrix.of_text(hub.file(MATRIX.as_posix(), pull.sha))
    entries = comment.choose(theirs, asked)
    if strange := {entry.soc for entry in entries} - {*ours.socs}:
        raise UsageError(
            f"the workflow has no job for {min(strange)}",
            "Merge the SoC first: a job has its secret only on the default branch.",
        )
    return Plan(
        theirs,
        entries,
        comment.session(asked),
        words,
        arguments.harness if pinned else hub.repository,
        arguments.harness_ref if pinned else pull.sha,
        about(said, pull, pinned, url, base or asked.compare),
    )


def outputs(found: Plan, said: Comment) -> str:
    """Lines for ``$GITHUB_OUTPUT``."""
    more = {
        "session": found.session,
        "words": " ".join(found.words),
        "repository": found.repository,
        "ref": found.ref,
        "pull": str(said.pull),
        "about": found.about,
    }
    lines = [f"{name}={foreign.line(value)}" for name, value in more.items()]
    return "\n".join([matrix.as_github(found.matrix, found.entries), *lines])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--product", default="", help="what the repository holds; default: this harness"
    )
    parser.add_argument("--harness", default="", help="the harness's repository, with --product")
    parser.add_argument("--harness-ref", default="", help="its commit")


def work(arguments: argparse.Namespace) -> int:
    """Check who asks for what, answer, and print what is to be started."""
    if arguments.product and not (arguments.harness and arguments.harness_ref):
        raise UsageError("--product: nothing says which harness tests it", "Say --harness-ref.")
    job = settings.github()
    said = comment_in(read_json(Path(job.event))) if job.event else None
    if said is None or not job.api:
        raise InfraError("this is no job of a comment: GITHUB_EVENT_PATH names none")
    if not said.pull or not comment.is_command(said.body):
        print(matrix.as_github(matrix.load(), ()))
        return 0
    hub = Hub(job.api, job.token, job.repository)
    level = hub.permission(said.login)
    if level not in WRITE:
        raise UsageError(
            f"{said.login} has the permission '{level}'; only who may write to {job.repository} "
            "starts a run with a comment"
        )
    try:
        found = plan(
            hub, said, comment.read(said.body), arguments, f"{job.server}/{hub.repository}"
        )
    except (UsageError, CaseError) as error:
        why, hint = error.message, error.hint
        if isinstance(error, CaseError):
            why, hint = f"{MATRIX} is wrong", str(error)
        asks = f"{foreign.code(said.line)} [Run]({job.url})"
        _say(hub, said, reply.refused(asks, why, hint))
        raise
    rows = [reply.running(matrix.job(entry)) for entry in found.entries]
    _say(hub, said, reply.text(found.about, rows, job.url))
    print(outputs(found, said))
    return 0


def _say(hub: Hub, said: Comment, text: str) -> None:
    hub.say(said.pull, said.mark, here().text(text), said.created)


main = door.Verb("ask", __doc__, _options, work)

if __name__ == "__main__":
    sys.exit(main())
