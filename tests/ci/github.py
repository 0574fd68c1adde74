"""A small GitHub on this machine: the part of its API that a comment and its reply need.

``with GitHub() as hub:`` serves it; its fields are what it knows, ``hub.seen`` what was asked.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "a" * 40
REPO = "o/r"


def pull(**more: Any) -> dict[str, Any]:
    head = {"sha": SHA, "repo": {"full_name": REPO, "pushed_at": "2026-11-25T12:00:00Z"}}
    return {"number": 7, "state": "open", "head": head, **more}


@dataclass
class GitHub:
    """What the server knows; ``broken`` answers first, an entry a request: (status, headers).

    ``breaks`` says of which method.
    """

    levels: dict[str, str] = field(default_factory=lambda: {"ann": "write"})
    pulls: dict[int, dict[str, Any]] = field(default_factory=lambda: {7: pull()})
    files: dict[tuple[str, str], str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=lambda: {"main": "d" * 40})
    comments: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    broken: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    breaks: str = "GET"
    seen: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def __enter__(self) -> GitHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and content."""
        head, _, rest = path.removeprefix(f"/repos/{REPO}/").partition("/")
        words = rest.split("/")
        if head == "collaborators" and rest.endswith("/permission"):
            level = self.levels.get(words[0])
            return (200, {"permission": level}) if level else (404, {"message": "Not Found"})
        if head == "pulls":
            found = self.pulls.get(int(words[0]))
            return (200, found) if found else (404, {"message": "Not Found"})
        if head == "commits":
            sha = self.commits.get(rest)
            return (200, {"sha": sha}) if sha else (422, {"message": "No commit found"})
        if head == "contents":
            text = self.files.get((rest, query["ref"]))
            return (200, text) if text is not None else (404, {"message": "Not Found"})
        if head == "actions":
            kind = words[-1]
            entries = self.jobs if kind == "jobs" else self.artifacts
            return 200, {kind: _page(entries, query)}
        if head == "issues" and words[0] == "comments" and method == "PATCH":
            [comment] = [one for one in self.comments if one["id"] == int(words[1])]
            comment["body"] = body["body"]
            return 200, comment
        if head == "issues" and words[-1] == "comments" and method == "POST":
            self.comments.append(comment_of(len(self.comments) + 1, body["body"]))
            return 201, self.comments[-1]
        if head == "issues" and words[-1] == "comments":
            return 200, _page(self.comments, query)
        return 404, {"message": "Not Found"}


def comment_of(number: int, body: str, kind: str = "Bot") -> dict[str, Any]:
    url = f"https://github.com/{REPO}/pull/7#issuecomment-{number}"
    return {"id": number, "body": body, "user": {"type": kind}, "html_url": url}


def _page(entries: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    size = int(query["per_page"])
    first = size * (int(query["page"]) - 1)
    return entries[first : first + size]


def _handler(hub: GitHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def work(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            hub.seen.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            heads: dict[str, str] = {}
            if hub.broken and hub.breaks == self.command:
                (status, heads), content = hub.broken.pop(0), {"message": "no"}
            else:
                query = {key: value[0] for key, value in parse_qs(parts.query).items()}
                status, content = hub.answer(self.command, path, query, body)
            raw = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            for name, value in {**heads, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PATCH = work

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return Handler
