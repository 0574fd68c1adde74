"""GitHub's API against a small GitHub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.nightly.hub import Hub, moment
from steps.core.errors import InfraError, MultinodeError, UsageError
from tests.ci.github import REPO, SHA, GitHub, comment_of, pull

MARK = "<!-- multinode 1 -->"


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with GitHub() as found:
        yield found


def hub(github: GitHub) -> Hub:
    return Hub(github.url, "tok", REPO)


def test_a_level_is_what_the_api_says(github: GitHub) -> None:
    github.levels = {"ann": "admin", "a b": "write", "bob": "read"}
    found = [hub(github).permission(name) for name in ("ann", "a b", "bob", "nobody")]
    assert found == ["admin", "write", "read", "none"]
    assert github.tokens == {"Bearer tok"}


def test_no_netrc_takes_the_place_of_the_token(
    github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login eve password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    hub(github).permission("ann")
    assert github.tokens == {"Bearer tok"}
    assert "tok" not in repr(hub(github))


def test_a_request_and_its_fork(github: GitHub) -> None:
    found = hub(github).pull(7)
    assert (found.sha, found.source, found.state) == (SHA, REPO, "open")
    assert found.pushed == moment("2026-11-25T12:00:00Z") > 1.7e9
    github.pulls[8] = pull(head={"sha": SHA, "repo": None}, state="closed")
    gone = hub(github).pull(8)
    assert (gone.source, gone.pushed, gone.state) == ("", 0.0, "closed")
    with pytest.raises(UsageError, match="no pull request 9"):
        hub(github).pull(9)
    github.pulls[9] = {"state": "open"}
    with pytest.raises(InfraError, match="pull request 9"):
        hub(github).pull(9)


def test_a_file_at_a_commit(github: GitHub) -> None:
    github.files["ci/nightly.yaml", SHA] = "a3: []\n"
    assert hub(github).file("ci/nightly.yaml", SHA) == "a3: []\n"
    with pytest.raises(UsageError, match="no ci/other"):
        hub(github).file("ci/other.yaml", SHA)


def test_a_reference_is_a_commit_now(github: GitHub) -> None:
    github.commits["feature/x y"] = "e" * 40
    found = [hub(github).commit(name) for name in ("main", "feature/x y", "pr/7")]
    assert found == ["d" * 40, "e" * 40, SHA]
    for name in ("gone", "pr/9", "pr/x"):
        with pytest.raises(UsageError, match="has no"):
            hub(github).commit(name)


LIMIT = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1764075600"}


@pytest.mark.parametrize(
    ("status", "heads", "told"),
    [
        (403, LIMIT, "after 13:00 UTC"),
        (429, {"retry-after": "60"}, "again in 60 s"),
        (429, {"retry-after": "soon"}, "later"),
        (403, {}, "403 no\n    Check the permissions"),
        (401, {}, "401 no"),
        (409, {}, "409 no"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(
    github: GitHub, status: int, heads: dict[str, str], told: str
) -> None:
    github.broken = [(status, heads)] * 5
    with pytest.raises(InfraError) as found:
        hub(github).pull(7)
    assert told in str(found.value) and len(github.seen) == 1
    assert found.value.exit_code == 3


def test_what_mends_itself_is_asked_again(github: GitHub) -> None:
    github.broken = [(502, {"retry-after": "3600"})] * 2
    assert hub(github).pull(7).sha == SHA
    github.broken = [(503, {})] * 5
    with pytest.raises(MultinodeError, match="503"):
        hub(github).pull(7)


def test_a_reply_that_may_be_written_already_is_not_written_twice(github: GitHub) -> None:
    github.broken, github.breaks = [(502, {})] * 5, "POST"
    with pytest.raises(InfraError, match="502"):
        hub(github).say(7, MARK, "x")
    assert github.seen.count("POST /repos/o/r/issues/7/comments") == 1
    github.broken = []
    hub(github).say(7, MARK, "x")
    github.broken, github.breaks = [(502, {})], "PATCH"
    hub(github).say(7, MARK, "y")
    assert [one["body"] for one in github.comments] == [f"{MARK}\ny"]


def test_nobody_answers() -> None:
    with GitHub() as gone:
        pass
    with pytest.raises(InfraError, match="does not answer"):
        hub(gone).pull(7)


def test_one_comment_is_changed_where_it_stands(github: GitHub) -> None:
    """Not that of a person who wrote our mark, and behind a hundred others."""
    people = [comment_of(number, f"{MARK}\nforged", "User") for number in range(1, 121)]
    github.comments = people
    url = hub(github).say(7, MARK, "running")
    assert hub(github).say(7, MARK, "✅ passed", since="2026-11-25T12:00:00Z") == url
    assert [one["body"] for one in github.comments[120:]] == [f"{MARK}\n✅ passed"]
    assert all(one["body"].endswith("forged") for one in people[:120])
    assert hub(github).say(7, "<!-- multinode 2 -->", "another") != url


def test_jobs_and_artifacts_of_a_run(github: GitHub) -> None:
    github.jobs = [{"name": f"job {n}", "html_url": "u"} for n in range(150)]
    github.artifacts = [{"name": "one", "id": 3}]
    assert len(hub(github).jobs("55")) == 150
    assert hub(github).files("55") == {"one": 3}
