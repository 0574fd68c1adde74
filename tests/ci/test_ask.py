"""From a comment to jobs and a reply, and from what the jobs left to the same reply; no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci.nightly import ask, jobs, matrix, reply, tell
from ci.nightly.reply import Row
from tests.ci.github import REPO, SHA, GitHub, comment_of, pull
from tests.core.cases import ROOT

OTHER = "b" * 40
PRODUCT = ("--product", "vllm-ascend", "--harness", "h/multinode", "--harness-ref", "c" * 40)
FORK = {"sha": SHA, "repo": {"full_name": "eve/r", "pushed_at": "2026-11-25T12:00:00Z"}}


def event(body: str, login: str = "ann", created: str = "2026-11-25T12:30:00Z") -> dict[str, Any]:
    said = {"id": 99, "body": body, "user": {"login": login}, "created_at": created}
    return {"comment": said, "issue": {"number": 7, "pull_request": {"url": "u"}}}


#: Linted once, not for each test.
MATRIX = cache(matrix.load)


class Job:
    """A job of GitHub's, with what it was told."""

    def __init__(self, github: GitHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.github, self.place, self._patch = github, place, monkeypatch
        told = {
            "API_URL": github.url,
            "SERVER_URL": "https://github.com",
            "TOKEN": "ghs_0123456789abcdefghij",
            "REPOSITORY": REPO,
            "RUN_ID": "55",
            "EVENT_PATH": str(place / "event.json"),
        }
        for name, value in told.items():
            monkeypatch.setenv(f"GITHUB_{name}", value)
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(matrix, "load", MATRIX)

    def asks(self, body: str, *words: str, **more: str) -> int:
        self.hears(event(body, **more))
        return ask.main(list(words))

    def hears(self, content: Any) -> None:
        (self.place / "event.json").write_text(json.dumps(content))

    @property
    def replies(self) -> list[str]:
        return [one["body"] for one in self.github.comments]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    with GitHub() as github:
        text = (ROOT / matrix.MATRIX).read_text(encoding="utf-8")
        github.files["ci/nightly.yaml", SHA] = text
        yield Job(github, tmp_path, monkeypatch)


def told(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_a_comment_on_a_product_starts_its_head(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.asks("/nightly deepseek-v3 --product vllm=v0.19.0\r\nthanks", *PRODUCT) == 0
    out = told(capsys.readouterr().out)
    workflow = yaml.safe_load((ROOT / jobs.FOLDER / "command.yaml").read_text(encoding="utf-8"))
    assert set(workflow["jobs"]["ask"]["outputs"]) <= set(out)
    assert out["session"] == "multinode" and out["soc-a3-count"] == "1"
    assert [one["name"] for one in json.loads(out["soc-a3"])["include"]] == ["deepseek-v3"]
    url = f"vllm-ascend=https://github.com/{REPO}@{SHA}"
    assert out["words"] == f"--product {url} --product vllm=v0.19.0"
    assert (out["repository"], out["ref"], out["pull"]) == ("h/multinode", "c" * 40, "7")
    [text] = job.replies
    assert text.startswith("<!-- multinode: reply to comment 99 -->\n### ⏳ 1 case running")
    assert "`/nightly deepseek-v3 --product vllm=v0.19.0` by `ann` tests vllm-ascend at" in text
    assert SHA in text and "actions/runs/55" in text and "ghs_" not in text


def test_a_comment_on_the_harness_starts_the_harness_of_the_request(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    new = "a3:\n- {name: new, case: configs/new.yaml, size: 2, profile: a3, runner: npu,"
    job.github.files["ci/nightly.yaml", SHA] = f"{new} cadence: manual, owner: us}}\n"
    assert job.asks("/nightly new") == 0
    out = told(capsys.readouterr().out)
    assert (out["repository"], out["ref"], out["words"]) == (REPO, SHA, "")
    assert json.loads(out["soc-a3"])["include"][0]["case"] == "configs/new.yaml"


def test_a_comparison_is_another_session(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.asks("/nightly deepseek-v3 --compare main", *PRODUCT) == 0
    out = told(capsys.readouterr().out)
    assert out["session"] == "compare"
    url = f"vllm-ascend=https://github.com/{REPO}"
    assert out["words"] == f"--a {url}@{'d' * 40} --b {url}@{SHA}"
    assert f"against `{'d' * 40}`" in job.replies[0]


@pytest.mark.parametrize("login", ["bob", "stranger"])
def test_who_may_not_write_is_not_heard(
    job: Job, capsys: pytest.CaptureFixture[str], login: str
) -> None:
    job.github.levels["bob"] = "read"
    assert job.asks("/nightly deepseek-v3", *PRODUCT, login=login) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "only who may write" in shown.err
    assert job.replies == [] and len(job.github.seen) == 1


@pytest.mark.parametrize(
    "content",
    [event("looks good"), event("/nightlyx a"), {**event("/nightly a"), "issue": {"number": 7}}],
)
def test_what_is_no_command_starts_nothing(
    job: Job, capsys: pytest.CaptureFixture[str], content: Any
) -> None:
    job.hears(content)
    assert ask.main([*PRODUCT]) == 0
    assert told(capsys.readouterr().out)["soc-a3-count"] == "0"
    assert job.github.seen == []


@pytest.mark.parametrize("content", [None, [], {"comment": {}}, {"comment": {"id": "x"}}])
def test_another_event_is_no_comment(job: Job, content: Any) -> None:
    job.hears(content)
    assert ask.main([]) == 3


@pytest.mark.parametrize(
    ("body", "more", "told"),
    [
        ("/nightly depseek-v3", {}, "Did you mean deepseek-v3"),
        ("/nightly all --soc a9", {}, "found 'a9'"),
        ("/nightly", {}, "no case is named"),
        ("/nightly deepseek-v3 --product vllm=pr/x", {}, "expected pr/NUMBER"),
        ("/nightly deepseek-v3 --product other=main", {}, "nothing says where other comes from"),
        ("/nightly deepseek-v3 --compare gone", {}, "has no gone"),
        ("/nightly deepseek-v3", {"state": "closed"}, "is closed"),
        (f"/nightly deepseek-v3 {OTHER}", {}, f"is {SHA} now, not {OTHER}"),
        ("/nightly deepseek-v3", {"head": {"sha": SHA, "repo": None}}, "the fork is gone"),
        ("/nightly `<img>|\u202e\x1b[31m", {}, "expected names"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_answered(
    job: Job, capsys: pytest.CaptureFixture[str], body: str, more: dict[str, Any], told: str
) -> None:
    job.github.pulls[7] = pull(**more)
    assert job.asks(body, *PRODUCT) == 2
    assert capsys.readouterr().out == ""
    [text] = job.replies
    assert "### ❌ not started" in text and told in text.replace("\\", "")
    assert "\u202e" not in text and "\x1b" not in text
    job.github.pulls[7] = pull()
    assert job.asks("/nightly deepseek-v3", *PRODUCT) == 0
    assert len(job.replies) == 1 and "⏳" in job.replies[0]


@pytest.mark.parametrize(
    ("body", "created", "words", "started"),
    [
        ("/nightly deepseek-v3", "2026-11-25T12:00:01Z", PRODUCT, True),
        ("/nightly deepseek-v3", "2026-11-25T12:00:00Z", PRODUCT, False),
        ("/nightly deepseek-v3", "2026-11-25T11:59:59Z", PRODUCT, False),
        ("/nightly deepseek-v3", "nonsense", PRODUCT, False),
        (f"/nightly deepseek-v3 {SHA}", "2026-11-25T11:59:59Z", PRODUCT, True),
        ("/nightly deepseek-v3", "2026-11-25T12:30:00Z", (), False),
        (f"/nightly deepseek-v3 {SHA}", "2026-11-25T12:30:00Z", (), True),
    ],
)
def test_a_fork_runs_as_it_was_read(
    job: Job, body: str, created: str, words: tuple[str, ...], started: bool
) -> None:
    """What was pushed after the comment was read by nobody; the harness's own names its commit."""
    job.github.pulls[7] = pull(head=FORK)
    assert job.asks(body, *words, created=created) == (0 if started else 2)
    assert ("⏳" in job.replies[0]) == started
    if not started:
        assert "name the commit that you have read" in job.replies[0] and SHA in job.replies[0]


@pytest.mark.parametrize("text", ["a3: 7", "[", "a3:\n- {name: x}"])
def test_a_broken_matrix_of_the_request_is_answered(job: Job, text: str) -> None:
    job.github.files["ci/nightly.yaml", SHA] = text
    assert job.asks("/nightly deepseek-v3") == 2
    assert "nightly.yaml is wrong" in job.replies[0]
    job.github.files.clear()
    assert job.asks("/nightly deepseek-v3") == 2
    assert "no ci/nightly.yaml at aaaaaaaaaaaa" in job.replies[0]


def test_a_soc_without_a_job_is_answered(job: Job) -> None:
    text = (ROOT / matrix.MATRIX).read_text(encoding="utf-8").replace("\na3:", "\na7:")
    job.github.files["ci/nightly.yaml", SHA] = text.replace("  a3: 2", "  a7: 2")
    assert job.asks("/nightly deepseek-v3") == 2
    assert "no job for a7" in job.replies[0]


def test_a_used_up_limit_is_nobodys_fault(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.github.broken = [(403, {"x-ratelimit-remaining": "0"})]
    assert job.asks("/nightly deepseek-v3", *PRODUCT) == 3
    assert "rate limit" in capsys.readouterr().err


# What became of it


def left(place: Path, name: str, **content: Any) -> None:
    """What the job of an entry uploads."""
    for file, data in content.items():
        path = place / f"_said-{name}" / f"{file}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))


def entries(*names: str) -> str:
    return json.dumps({"include": [{"name": name, "soc": "a3"} for name in names]})


PASS = {"verdict": "pass", "cause": None}
SLOW = {"verdict": "performance", "cause": {"reason": "chat: 791 <b>tok/s</b> | limit 837"}}


def test_the_reply_becomes_the_verdict_where_it_stands(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.asks("/nightly deepseek-v3 qwen3-235b", *PRODUCT) == 0
    about = told(capsys.readouterr().out)["about"]
    left(tmp_path, "deepseek-v3", verdict=PASS)
    left(tmp_path, "qwen3-235b", verdict=SLOW)
    job.github.jobs = [
        {"name": "nightly / qwen3-235b / run", "html_url": "https://github.com/o/r/job/2"},
        {"name": "nightly / deepseek-v3 / run", "html_url": "https://github.com/o/r/job/1"},
    ]
    job.github.artifacts = [{"name": "deepseek-v3", "id": 31}, {"name": "_said-x", "id": 32}]
    job.github.comments.append(comment_of(2, "someone else"))
    words = [str(tmp_path), "--entries", entries("deepseek-v3", "qwen3-235b"), "--about", about]
    assert tell.main(words) == 0
    text, other = job.replies
    assert other == "someone else"
    assert text.startswith("<!-- multinode: reply to comment 99 -->\n### ❌ 1 of 2 without fault")
    files = "[files](https://github.com/o/r/actions/runs/55/artifacts/31)"
    links = f"[job](https://github.com/o/r/job/1) {files}"
    assert f"| ✅ | deepseek-v3 | a3 | pass |  | {links} |" in text
    assert r"chat: 791 \<b>tok/s\</b> \| limit 837 | [job](https://github.com/o/r/job/2)" in text
    assert capsys.readouterr().out.strip() in text and about in text


def test_an_entry_that_left_nothing_is_not_green(job: Job, tmp_path: Path) -> None:
    job.hears(event("/nightly a b c"))
    job.github.jobs = [
        {"name": "a / run", "conclusion": "cancelled", "html_url": "javascript:x"},
        {"name": "b / run / run", "conclusion": "success"},
        {"name": "cc / run", "conclusion": "failure"},
    ]
    left(tmp_path, "d", verdict=["odd"])
    assert tell.main([str(tmp_path), "--entries", entries("a", "b", "c", "d")]) == 0
    [text] = job.replies
    assert "❌ 0 of 4" in text and "javascript" not in text
    assert "| ⚪ | a | a3 | cancelled |" in text and "no verdict | its job: success" in text
    assert text.count("no verdict | its job: unknown") == 2


def test_a_night_tells_an_issue(job: Job, tmp_path: Path) -> None:
    job.hears({"schedule": "17 15 * * *"})
    left(tmp_path, "one", verdict=SLOW)
    (tmp_path / "_found-one").mkdir()
    (tmp_path / "_found-one" / "comment.md").write_text("**culprit** \x1b[31m\n\n| c | o |\n")
    words = [str(tmp_path), "--entries", entries("one"), "--issue", "7"]
    assert tell.main(words) == tell.main(words) == 0
    [text] = job.replies
    assert text.startswith("<!-- multinode: the last night -->") and "\x1b" not in text
    assert "<summary>one: which commit</summary>\n\n**culprit**" in text
    job.github.comments.clear()
    assert tell.main(words[:3]) == 0 and job.replies == []
    assert tell.main([*words[:4], "seven"]) == 2


def test_links_that_cannot_be_had_cost_nothing_else(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.hears(event("/nightly one"))
    left(tmp_path, "one", verdict=PASS)
    job.github.broken = [(403, {})]
    assert tell.main([str(tmp_path), "--entries", entries("one")]) == 0
    assert "no links to jobs" in capsys.readouterr().err and "✅ 1 of 1" in job.replies[0]
    assert tell.main([str(tmp_path), "--entries", "{}"]) == 2


def test_a_comparison_says_what_it_found(tmp_path: Path) -> None:
    metrics = [
        {"name": "chat ttft_p99_ms", "finding": "worse"},
        {"name": "x", "finding": "no_worse"},
    ]
    left(tmp_path, "one", compare={"finding": "worse", "metrics": metrics})
    left(tmp_path, "two", compare={"finding": "no_worse", "metrics": []})
    left(tmp_path, "three", compare={"finding": "unknown"})
    rows = [reply.told({"name": n, "soc": "a3"}, tmp_path, {}, {}) for n in ("one", "two", "three")]
    assert [(row.verdict, row.why, row.green) for row in rows] == [
        ("worse", "chat ttft_p99_ms", False),
        ("no_worse", "", True),
        ("unknown", "", False),
    ]
    assert "cannot tell within the budget" in reply.text("", rows, "https://u")


def test_a_known_issue_is_named(tmp_path: Path) -> None:
    known = {**SLOW, "known_issue": {"link": "https://x/1", "green": False}}
    left(tmp_path, "one", verdict=known)
    assert "(known: https://x/1)" in reply.told({"name": "one", "soc": ""}, tmp_path, {}, {}).why


def test_foreign_words_call_nobody() -> None:
    """A mention in a cause or a subject would tell people, and link to another's request."""
    rows = [Row("one", "a3", "crash", "@everyone see #12, a@b c#d", (), "fix (#99) by @eve\n")]
    text = reply.text("", rows, "https://u")
    assert "@everyone" not in text and "#12" not in text and "#99" not in text
    assert "@<!-- -->everyone see #<!-- -->12, a@b c#d" in text and text.startswith("### ")


def test_a_long_reply_fits() -> None:
    rows = [
        Row(f"n{number}", "a3", "crash", "w" * 5000, (("job", "https://u"),))
        for number in range(250)
    ]
    text = reply.text("about", rows, "https://u")
    assert len(text) < 60_000 and "150 more are in the run" in text
    rows = [Row(f"n{number}", "a3", "crash", found="w" * 8000) for number in range(20)]
    assert 50_000 < len(reply.text("about", rows, "https://u")) < 65_000
