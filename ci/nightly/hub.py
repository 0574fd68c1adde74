"""GitHub's API, as far as a comment and its reply need it.

Enters: the address of the API and a token. Leaves: typed values. Touches: the network; a comment
of ours, which is found again by a hidden mark and changed where it stands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from steps.core.case.numbers import loads
from steps.core.errors import InfraError, UsageError

TIMEOUT = (10, 30)
#: Pages of a list that are read at most, of 100 entries each.
PAGES = 20
#: Levels of the API that may write.
WRITE = ("admin", "maintain", "write")
_BROKEN = (500, 502, 503, 504)


@dataclass(frozen=True)
class Pull:
    """A pull request as it is now.

    Attributes:
        source: the repository of its branch; empty when that is gone.
        pushed: when anything was last pushed there, seconds since the epoch.
    """

    number: int
    state: str
    sha: str
    source: str
    pushed: float


class NotThere(InfraError):
    """The API knows no such thing, or does not show it to this token."""


class _Bearer(requests.auth.AuthBase):
    """The token, which no ``.netrc`` replaces."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


@dataclass(frozen=True)
class Hub:
    """One repository's part of the API."""

    api: str
    token: str = field(repr=False)
    repository: str

    def permission(self, login: str) -> str:
        """What a person may do in the repository; ``none`` of a stranger."""
        try:
            found = self._ask("GET", f"collaborators/{quote(login, safe='')}/permission")
        except NotThere:
            return "none"
        return str(found.get("permission", "none"))

    def pull(self, number: int) -> Pull:
        """A pull request.

        Raises:
            UsageError: there is none of this number.
        """
        try:
            found = self._ask("GET", f"pulls/{number}")
            head = found["head"]
            source = head["repo"] or {}
            return Pull(
                number,
                str(found["state"]),
                str(head["sha"]),
                str(source.get("full_name", "")),
                moment(source.get("pushed_at")),
            )
        except NotThere:
            raise UsageError(f"{self.repository} has no pull request {number}") from None
        except (KeyError, TypeError, AttributeError):
            raise InfraError(f"GitHub's answer on pull request {number} is none") from None

    def commit(self, reference: str) -> str:
        """The commit that a branch, a tag, ``pr/NUMBER`` or a commit means now.

        Raises:
            UsageError: the repository has none such.
        """
        kind, _, number = reference.partition("pr/")
        if not kind and number.isdecimal() and len(number) < 10:
            return self.pull(int(number)).sha
        try:
            return str(self._ask("GET", f"commits/{quote(reference)}")["sha"])
        except NotThere:
            raise UsageError(f"{self.repository} has no {reference}") from None
        except (KeyError, TypeError):
            raise InfraError(f"GitHub's answer on {reference} is none") from None

    def file(self, path: str, sha: str) -> str:
        """The text of a file at a commit.

        Raises:
            UsageError: the commit has no such file.
        """
        accept = {"Accept": "application/vnd.github.raw+json"}
        try:
            answer = self._send("GET", f"contents/{quote(path)}", {"ref": sha}, headers=accept)
        except NotThere:
            raise UsageError(f"{self.repository} has no {path} at {sha[:12]}") from None
        return answer.text

    def jobs(self, run: str) -> dict[str, dict[str, Any]]:
        """The jobs of a run of a workflow, by name."""
        found = self._pages(f"actions/runs/{quote(run, safe='')}/jobs", "jobs")
        return {str(job.get("name")): job for job in found}

    def files(self, run: str) -> dict[str, int]:
        """The artifacts of a run of a workflow: name -> number."""
        found = self._pages(f"actions/runs/{quote(run, safe='')}/artifacts", "artifacts")
        return {str(one.get("name")): int(one.get("id", 0)) for one in found}

    def say(self, number: int, mark: str, text: str, since: str = "") -> str:
        """Write our one comment of this mark on an issue or request, or change it; its address.

        Somebody else's comment is never changed, whatever mark it holds.

        Args:
            since: ISO time before which it cannot have been written.
        """
        body = f"{mark}\n{text}"
        given = {"since": since} if since else {}
        for comment in self._pages(f"issues/{number}/comments", "", **given):
            ours = (comment.get("user") or {}).get("type") == "Bot"
            if ours and str(comment.get("body", "")).startswith(mark):
                where = f"issues/comments/{int(comment['id'])}"
                return str(self._ask("PATCH", where, {"body": body}).get("html_url", ""))
        made = self._ask("POST", f"issues/{number}/comments", {"body": body})
        return str(made.get("html_url", ""))

    def _pages(self, path: str, key: str, **given: str) -> Iterator[dict[str, Any]]:
        """Every entry of a list; ``key`` names it in an answer that is none itself."""
        for page in range(1, PAGES + 1):
            found = self._ask("GET", path, {**given, "per_page": "100", "page": str(page)})
            entries = found.get(key) if key else found
            if not isinstance(entries, list):
                raise InfraError(f"GitHub's answer to {path} is no list")
            yield from (entry for entry in entries if isinstance(entry, dict))
            if len(entries) < 100:
                return

    def _ask(self, method: str, path: str, given: Mapping[str, str] | None = None) -> Any:
        answer = self._send(method, path, given or {})
        try:
            return loads(answer.text)
        except ValueError:
            raise InfraError(f"GitHub's answer to {method} {path} is no JSON") from None

    def _send(
        self,
        method: str,
        path: str,
        given: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        usual = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        data = {"params": given} if method == "GET" else {"json": given}
        try:
            with requests.Session() as session:
                session.auth = _Bearer(self.token)
                session.mount(self.api, HTTPAdapter(max_retries=_patience()))
                answer = session.request(
                    method,
                    f"{self.api}/repos/{self.repository}/{path}",
                    headers={**usual, **(headers or {})},
                    timeout=TIMEOUT,
                    **data,  # type: ignore[arg-type]
                )
        except requests.RequestException as error:
            raise InfraError(f"GitHub's API does not answer: {error}", "Try it later.") from None
        if answer.ok:
            return answer
        raise _refusal(f"{method} {path}", answer)


def _patience() -> Retry:
    """Twice more after what mends itself, but never for what may have been done already."""
    return Retry(
        total=2,
        backoff_factor=0.2,
        status_forcelist=_BROKEN,
        allowed_methods=("GET", "PATCH"),
        respect_retry_after_header=False,
        raise_on_status=False,
    )


def _refusal(what: str, answer: requests.Response) -> InfraError:
    """Why the API refused."""
    status, heads = answer.status_code, answer.headers
    if status in (404, 422):  # it answers so to a reference that nobody has
        return NotThere(f"GitHub knows no {what}", "Check the token's permissions.")
    if status in (403, 429) and (
        heads.get("x-ratelimit-remaining") == "0" or "retry-after" in heads
    ):
        return InfraError(f"GitHub's rate limit is used up ({what})", _when(heads))
    try:
        said = str(loads(answer.text)["message"])[:200]
    except (ValueError, KeyError, TypeError):
        said = answer.reason or ""
    hint = "Check the permissions of the workflow's token." if status in (401, 403) else ""
    return InfraError(f"GitHub refused {what}: {status} {said}", hint)


def _when(heads: Mapping[str, str]) -> str:
    after, reset = heads.get("retry-after", ""), heads.get("x-ratelimit-reset", "")
    if after.isdecimal():
        return f"Run the job again in {after} s."
    if reset.isdecimal() and len(reset) < 12:
        return f"Run the job again after {time.strftime('%H:%M', time.gmtime(int(reset)))} UTC."
    return "Run the job again later."


def moment(text: Any) -> float:
    """Seconds since the epoch of a time as the API writes it; 0 when it is none."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
