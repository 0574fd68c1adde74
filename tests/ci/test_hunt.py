"""Whether a red night is followed by a search: a pure function over history and verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci.compare import axis, bisect, trial
from ci.compare.commits import Commit
from ci.compare.pair import Started
from ci.nightly import hunt, reply
from ci.nightly.history import DirectoryStore, Result
from ci.nightly.hunt import DAY, Decision, Limits
from steps.core.record.verdict import PRODUCT_FAULTS
from tests.compare.test_bisect import NOISE, git, product, steps
from tests.core.cases import ROOT

OLD, NEW = "a" * 40, "b" * 40
LIMITS = Limits(2000, 3)
PRODUCTS = ("vllm", "vllm-ascend")


def night(day: float, verdict: str = "pass", commit: str = OLD, **more: Any) -> Result:
    versions = {"vllm-commit": "c" * 40, "vllm-ascend-commit": commit, "cann": "8.3"}
    given = {"versions": {**versions, **more.pop("moved", {})}, "npu_minutes": 100.0, **more}
    time = 1.7e9 + day * DAY
    return Result(f"run-{day:g}", "quickstart", time, verdict, **{"cluster": "a3", **given})


BAD = night(3, "performance", NEW)


def decided(bad: Result = BAD, *past: Result, issue: str = "", limits: Limits = LIMITS) -> Decision:
    return hunt.decide(bad, past or (night(1), night(2)), issue, limits, PRODUCTS)


@pytest.mark.parametrize("verdict", PRODUCT_FAULTS)
def test_the_first_red_night_after_a_good_one_is_searched(verdict: str) -> None:
    found = decided(replace(BAD, verdict=verdict))
    assert found.ends == {"vllm-ascend": (OLD, NEW)} and "run-2 of " in found.why
    assert hunt.words(found, LIMITS) == (
        *("--repository", "vllm-ascend=products/vllm-ascend"),
        *("--good", f"vllm-ascend={OLD}", "--bad", f"vllm-ascend={NEW}"),
        *("--product", "vllm-ascend={vllm-ascend}", "--budget", "2000"),
    )


def test_several_products_and_what_else_moved() -> None:
    found = decided(night(3, "crash", NEW, moved={"vllm-commit": "d" * 40, "cann": "8.5"}))
    assert found.ends == {"vllm": ("c" * 40, "d" * 40), "vllm-ascend": (OLD, NEW)}
    assert found.also == ("cann 8.3 -> 8.5",)
    said = hunt.text(found)
    assert "is started" in said and "moved too: cann 8.3 -> 8.5" in said
    assert f"`{OLD}` to `{NEW}`" in said


def test_a_version_that_goes_with_its_commit_is_not_named_beside_it() -> None:
    past = night(2, moved={"vllm-ascend": "0.29"})
    assert decided(night(3, "crash", NEW, moved={"vllm-ascend": "0.30"}), past).also == ()


@pytest.mark.parametrize(
    "verdict", ["pass", "infra", "no-verdict", "interrupted", "deadline", "case"]
)
def test_what_no_commit_explains_is_not_searched(verdict: str) -> None:
    found = decided(replace(BAD, verdict=verdict))
    assert not found.ends and f"is {verdict}" in found.why


@pytest.mark.parametrize(
    ("past", "more", "why"),
    [
        ([], {"limits": Limits(0, 3)}, "switched off"),
        ([], {"issue": "https://x/1"}, "known issue: https://x/1"),
        ([night(1, "crash")], {}, "no run of it has passed"),
        ([night(1, cluster="a2")], {}, "no run of it has passed"),
        ([night(1, rehearsed=True)], {}, "no run of it has passed"),
        ([night(1, asked={"vllm-ascend": "pr/5"})], {}, "no run of it has passed"),
        ([night(-0.1)], {}, "is 3.1 days old, at most 3"),
        ([night(2, case_sha256="x")], {}, "the case has changed"),
        ([night(1), night(2, "performance", NEW)], {}, "is performance since run-2 of "),
        ([night(2, npu_minutes=400.0)], {}, "less than 6 starts of 400"),
        ([night(2, commit=NEW)], {}, "nothing has moved"),
        ([night(2, commit=NEW, moved={"cann": "8.2"})], {}, "but cann 8.2 -> 8.3"),
        ([night(2, commit=f"{OLD}-dirty")], {}, "-dirty' is no commit"),
        ([night(2, commit=f"{OLD} (node 0), {NEW} (node 1)")], {}, "is no commit"),
        ([night(2, commit="")], {}, "vllm-ascend: 'nothing' is no commit"),
        ([night(2, moved={"mooncake-commit": OLD})], {}, "mooncake: 'nothing' is no commit"),
    ],
)
def test_why_a_search_is_not_started(past: list[Result], more: dict[str, Any], why: str) -> None:
    found = decided(BAD, *past, **more)
    assert not found.ends and why in found.why
    assert "No search" in hunt.text(found)


def test_a_rehearsal_is_not_searched() -> None:
    assert "rehearsed" in decided(replace(BAD, rehearsed=True)).why


def test_a_product_of_nobodys_knowledge_is_not_searched() -> None:
    past = night(2, moved={"x-commit": OLD})
    found = decided(night(3, "crash", moved={"x-commit": NEW}), past)
    assert found.why == "nothing says where x comes from"


def test_nights_of_another_failure_between_do_not_hinder() -> None:
    assert decided(BAD, night(1), night(2, "infra"), night(2.5, "crash")).ends


def test_noise_between_good_and_bad_takes_the_newest_good() -> None:
    found = decided(BAD, night(1), night(1.5, "performance"), night(2, commit="e" * 40))
    assert found.ends == {"vllm-ascend": ("e" * 40, NEW)}


def test_the_words_are_those_of_the_search() -> None:
    found = bisect.main.parser().parse_known_args(["CASE", *hunt.words(decided(), LIMITS)])
    assert found[0].repository == ["vllm-ascend=products/vllm-ascend"]
    assert (found[0].good, found[0].bad) == ([f"vllm-ascend={OLD}"], [f"vllm-ascend={NEW}"])
    assert found[0].budget == 2000
    assert found[1] == ["--product", "vllm-ascend={vllm-ascend}"]
    state = {"vllm-ascend": Commit(NEW, "x")}
    assert axis.filled(found[1][1], state, {}) == f"vllm-ascend={NEW}"


# On a run directory


def told(place: Path, **content: Any) -> Path:
    run = place / "run"
    run.mkdir()
    (run / "verdict.json").write_text(
        json.dumps({"run": "run-3", "verdict": "performance", **content})
    )
    return run


def go(place: Path, run: Path, *words: str) -> int:
    store = ("--store", str(place / "history"))
    return hunt.main(["quickstart.yaml", "--run", str(run), *store, *words])


def test_a_run_becomes_the_words_of_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in (night(2), BAD, night(4)):
        DirectoryStore(tmp_path / "history").append(one)
    run = told(tmp_path)
    assert go(tmp_path, run, "--minutes", "2000") == 0
    out = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert out["words"].startswith("--repository vllm-ascend=products/vllm-ascend --good")
    assert out["sources"] == "vllm-ascend=https://github.com/vllm-project/vllm-ascend.git"
    assert "is started" in (run / "hunt.md").read_text()
    assert go(tmp_path, run) == 0  # off unless somebody switches it on
    assert capsys.readouterr().out == "" and "switched off" in (run / "hunt.md").read_text()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"run": "another"}, "not in the history"),
        ({"cases": []}, "no verdict of one case"),
        ({"known_issue": {"link": "https://x/1"}}, "known issue"),
    ],
)
def test_a_run_that_is_not_searched_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], why: str
) -> None:
    for one in (night(2), BAD):
        DirectoryStore(tmp_path / "history").append(one)
    assert go(tmp_path, told(tmp_path, **content), "--minutes", "2000") == 0
    shown = capsys.readouterr()
    assert shown.out == "" and why in shown.err


@pytest.mark.parametrize("wrong", [["--minutes", "-1"], ["--minutes", "nan"], ["--days", "0"]])
def test_limits_that_are_none_are_refused(tmp_path: Path, wrong: list[str]) -> None:
    try:
        code = go(tmp_path, tmp_path, *wrong)
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2


def test_without_a_history_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTINODE_HISTORY", raising=False)
    assert hunt.main(["quickstart.yaml", "--run", str(tmp_path), "--minutes", "1"]) == 2


def test_a_red_night_ends_with_its_commit_under_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the night's run to the search to the note; only the fleets of the search are played."""
    repository = product(tmp_path, steps(12, 7, "100", "90"))
    old, new = git(repository, "rev-parse", "main~11"), git(repository, "rev-parse", "main")
    for one in (night(2, commit=old), night(3, "performance", new)):
        DirectoryStore(tmp_path / "history").append(one)
    assert go(tmp_path, told(tmp_path), "--minutes", "900000") == 0
    out = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())

    def start(case: Path, number: int, words: Sequence[str], directory: Path, env: Any) -> Started:
        directory.with_suffix(".log").touch()
        name, _, sha = words[words.index("--product") + 1].partition("=")
        assert name == "vllm-ascend" and "a3" in words
        speed = float(git(repository, "show", f"{sha}:words"))
        return Started(number, {"chat output_throughput": (speed * next(NOISE),)})

    monkeypatch.setattr(trial, "start", start)
    monkeypatch.setenv("MULTINODE_HISTORY", str(tmp_path / "history"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "products").mkdir()
    git(tmp_path, "clone", "--quiet", "--no-checkout", str(repository), "products/vllm-ascend")
    found = tmp_path / "_found-one"
    words = [*out["words"].split(), "--on", "k8s", "--profile", "a3", "--dir", str(found)]
    assert bisect.main([str(ROOT / "configs" / "quickstart.yaml"), *words]) == 0
    row = reply.told({"name": "one", "soc": "a3"}, tmp_path, {}, {})
    text = reply.text("", [row], "https://u")
    assert "**culprit**" in text and r"change 7 \| \<b>" in text
    assert git(repository, "rev-parse", "--short=10", "main~4") in text
