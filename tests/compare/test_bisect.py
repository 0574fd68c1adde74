"""A search over the commits of a real repository; once with real fleets of the tests' engine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci.compare import axis, bisect, commits, trial
from ci.compare.pair import Started
from ci.nightly.history import Result, open_store
from steps.core.case.build import load_case
from steps.core.errors import InfraError, UsageError
from tests.faults.rehearse import ROOT
from tests.realpath import fleet

Commits = dict[str, str | None]
NOISE = itertools.cycle((1.0, 1.004, 0.997, 1.002, 0.995))


def git(repository: Path, *words: str) -> str:
    identity = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")}  # fmt: skip
    done = subprocess.run(["git", "-C", str(repository), *words], check=True, text=True,
                          capture_output=True, env={**os.environ, **identity})  # fmt: skip
    return done.stdout.strip()


def product(tmp: Path, history: list[Commits]) -> Path:
    """A repository with a commit for each entry: file -> text, or None: it is removed."""
    repository = tmp / "product"
    repository.mkdir()
    git(repository, "init", "--quiet", "--initial-branch=main")
    for number, files in enumerate(history):
        for name, text in files.items():
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text or "")
            path.chmod(0o755)
        (repository / "count").write_text(str(number))
        git(repository, "add", "-A")
        git(repository, "commit", "--quiet", "-m", f"change {number} | <b>")
    return repository


def steps(count: int, culprit: int, before: str, after: str) -> list[Commits]:
    """``words`` changes at one commit."""
    return [{"words": after if number >= culprit else before} for number in range(count)]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, with starts that only read ``words`` of the checkout: a speed, or a crash."""

    def start(case: Path, number: int, words: object, directory: Path, env: object) -> Started:
        directory.with_suffix(".log").touch()
        said = (directory.parent / "product" / "words").read_text()
        if said.startswith("crash"):
            return Started(number, failure=said)
        return Started(number, {"chat output_throughput": (float(said) * next(NOISE),)})

    def run(repository: Path, *more: str, good: str = "main~15", start: Any = start) -> int:
        monkeypatch.setattr(trial, "start", start)
        ends = ("--repository", str(repository), "--good", good, "--bad", "main")
        return bisect.main(["quickstart.yaml", *ends, "--dir", str(tmp_path / "out"), *more])

    return run


def told(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "bisect.json").read_text())


def culprits(tmp_path: Path) -> list[str]:
    return [one["subject"] for one in told(tmp_path)["answer"]["suspects"]]


def test_the_culprit_is_named_with_its_odds(
    search: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = product(tmp_path, steps(16, 9, "100", "95"))
    assert search(repository) == 0
    assert culprits(tmp_path) == ["change 9 | <b>"]
    out = capsys.readouterr().out
    assert "**culprit**" in out
    assert r"change 9 \| \<b>" in (tmp_path / "out" / "comment.md").read_text()
    log = (tmp_path / "out" / "bisect.log").read_text().splitlines()
    assert log[0].startswith("git bisect start")
    git(repository, "bisect", "replay", str(tmp_path / "out" / "bisect.log"))
    assert f"good {git(repository, 'rev-parse', 'main~7')}" in "\n".join(log)


def test_a_crash_is_searched_by_its_signature(search: Callable[..., int], tmp_path: Path) -> None:
    history = steps(16, 12, "100", "crash: EngineCore")
    history[5] = {"words": "crash: other"}
    history[6] = {"words": "100"}
    assert search(product(tmp_path, history)) == 0
    assert culprits(tmp_path) == ["change 12 | <b>"]
    assert told(tmp_path)["searched"] == "crash: EngineCore"


def test_no_difference_today_is_said(search: Callable[..., int], tmp_path: Path) -> None:
    assert search(product(tmp_path, steps(16, 99, "100", "1"))) == 6


def test_good_that_fails_today_is_the_environment(
    search: Callable[..., int], tmp_path: Path
) -> None:
    assert search(product(tmp_path, steps(16, 0, "", "crash: x"))) == 7


def test_what_cannot_be_installed_is_left_out(search: Callable[..., int], tmp_path: Path) -> None:
    history = steps(16, 9, "100", "80")
    for number, entry in enumerate(history):
        entry["setup.py"] = "exit(1)" if number in (8, 9) else f"# {number // 4}"
    install = f"{sys.executable} setup.py"
    assert search(product(tmp_path, history), "--install", install) == 5
    assert sorted(culprits(tmp_path)) == [f"change {n} | <b>" for n in (10, 8, 9)]
    assert told(tmp_path)["out"] == [8, 9]


def test_what_the_nodes_cannot_install_is_started_once(
    search: Callable[..., int], tmp_path: Path
) -> None:
    """Another start would change nothing, while other failures get three."""
    history = steps(16, 9, "100", "80")
    for number, text in ((7, "crash of something else"), (8, "startup install node: pip")):
        history[number] = {"words": text}
    history[9] = {"words": "80"}

    def start(case: Path, number: int, words: object, directory: Path, env: object) -> Started:
        directory.with_suffix(".log").touch()
        said = (directory.parent / "product" / "words").read_text()
        if not said.isdecimal():
            return Started(number, failure=said)
        return Started(number, {"chat output_throughput": (float(said) * next(NOISE),)})

    assert search(product(tmp_path, history), start=start) == 5
    kept = told(tmp_path)
    assert sorted(culprits(tmp_path)) == [f"change {n} | <b>" for n in (7, 8, 9)]
    assert (kept["out"], kept["unclear"]) == ([8], [7])
    counts = [[one["variant"] for one in kept["starts"]].count(k) for k in (7, 8)]
    assert counts == [3, 1]
    assert f"git bisect skip {kept['commits'][7]['sha']}" in (
        (tmp_path / "out" / "bisect.log").read_text()
    )


def test_an_unchanged_build_is_not_made_again_and_a_failed_one_is_forgotten(
    search: Callable[..., int], tmp_path: Path
) -> None:
    history = steps(16, 9, "100", "80")
    history[0]["setup.py"] = f"open({str(tmp_path / 'built')!r}, 'a').write('x')"
    assert search(product(tmp_path, history), "--install", f"{sys.executable} setup.py") == 0
    assert (tmp_path / "built").read_text() == "x"


def test_it_goes_on_where_it_died(search: Callable[..., int], tmp_path: Path) -> None:
    repository = product(tmp_path, steps(16, 9, "100", "95"))
    count = itertools.count()

    def dies(case: Path, number: int, words: object, directory: Path, env: object) -> Started:
        if next(count) == 7:
            raise KeyboardInterrupt
        said = (directory.parent / "product" / "words").read_text()
        return Started(number, {"chat output_throughput": (float(said) * next(NOISE),)})

    assert search(repository, start=dies) == 130
    assert len(told(tmp_path)["starts"]) == 7
    assert search(repository, start=dies) == 0
    assert culprits(tmp_path) == ["change 9 | <b>"]
    assert search(repository, start=dies, good="main~3") == 2


def test_a_repository_that_vanishes_stops_no_search_that_runs(
    search: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = product(tmp_path, steps(16, 9, "100", "95"))

    def start(case: Path, number: int, words: object, directory: Path, env: object) -> Started:
        if repository.exists():
            repository.rename(tmp_path / "gone")
        return reads_words(case, number, words, directory, env)

    assert search(repository, start=start) == 0
    assert culprits(tmp_path) == ["change 9 | <b>"]
    assert search(repository, start=start) == 2
    assert "is no directory" in capsys.readouterr().err


def test_infrastructure_that_fails_never_decides(
    search: Callable[..., int], tmp_path: Path
) -> None:
    repository = product(tmp_path, steps(16, 9, "100", "95"))
    assert search(repository, start=lambda *_: None) == 3
    assert told(tmp_path)["starts"] == []


def test_the_budget_leaves_the_window(search: Callable[..., int], tmp_path: Path) -> None:
    assert search(product(tmp_path, steps(16, 9, "100", "95")), "--starts", "8") == 4
    assert "change 9 | <b>" in culprits(tmp_path)


def test_two_searches_in_one_directory_are_refused(
    search: Callable[..., int], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    repository = product(tmp_path, steps(3, 1, "1", "2"))
    with bisect._alone(tmp_path / "out"):
        assert search(repository, good="main~2") == 2


@pytest.mark.parametrize(("culprit", "code"), [("image", 0), ("vllm", 0), ("ascend", 0)])
def test_of_several_products_and_the_image_one_is_found_and_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str, code: int
) -> None:
    """Each start has the commits of its place, and the products are swapped before the rest."""
    shas: dict[str, list[str]] = {}
    words = []
    for name in ("vllm", "ascend"):
        (tmp_path / name).mkdir()
        repository = product(tmp_path / name, [{"x": "1"}] * 8)
        shas[name] = git(repository, "rev-list", "--reverse", "main").split()
        words += ["--repository", f"{name}={repository}", "--good", f"{name}=main~7"]
    words += ["--good", "image=old:1", "--bad", "image=new:2", "--dir", str(tmp_path / "out")]
    first_bad = {"image": "new:2", "vllm": shas["vllm"][3], "ascend": shas["ascend"][5]}[culprit]
    given = []

    def start(case: Path, number: int, words: list[str], directory: Path, env: object) -> Started:
        images = words[words.index("--image") + 1]
        told = dict(word.split("=", 1) for word in words if "=" in word)
        at = {name: shas[name].index(told[name].split("@")[1]) for name in shas}
        for name in shas:
            assert told[name].split("@")[0] == str(tmp_path / "out" / f"product-{name}")
        given.append((images, at["vllm"], at["ascend"]))
        slow = {"image": images == "new:2", "vllm": at["vllm"] >= 3, "ascend": at["ascend"] >= 5}
        speed = 90 if slow[culprit] else 100
        directory.with_suffix(".log").touch()
        return Started(number, {"chat output_throughput": (speed * next(NOISE),)})

    monkeypatch.setattr(trial, "start", start)
    assert bisect.main(["quickstart.yaml", *words, "--on", "k8s"]) == code
    answer = told(tmp_path)["answer"]
    assert [one["sha"] for one in answer["suspects"]] == [first_bad]
    swaps = [one for one in dict.fromkeys(given) if one[1] in (0, 7) and one[2] in (0, 7)]
    assert {("old:1", 0, 0), ("new:2", 7, 7)} < {*swaps}
    assert list(dict.fromkeys(given))[:3] == swaps[:3]
    assert not (tmp_path / "out" / "bisect.log").exists()  # git replays one repository


def test_nights_of_the_history_shorten_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = product(tmp_path, steps(64, 40, "100", "97"))
    shas = git(repository, "rev-list", "--reverse", "main").split()
    ends = ("--repository", str(repository), "--metric", "chat output_throughput")
    counts = []
    for nightly in ([], [2, 10, 20, 30, 38, 39, 41, 42, 50, 60]):
        store = tmp_path / f"history-{len(nightly)}"
        for at in nightly or [2]:
            night = Result(
                f"run{at}", "quickstart", 1e9 + at, "pass" if at < 3 else "performance",
                versions={"product-commit": shas[at][:12]}, cluster="c",
                benchmarks={"chat": {"output_throughput": 97.0 if at >= 40 else 100.0}},
            )  # fmt: skip
            open_store(str(store)).append(night)
        last = replace(night, run="last", time=2e9, verdict="performance", benchmarks={})
        others = ({"rehearsed": True}, {"cluster": "other"}, {"asked": {"p": "pr/1"}})
        for k, other in enumerate(others):
            odd = replace(last, run=f"odd{k}", time=1.5e9, verdict="pass", **other)
            open_store(str(store)).append(replace(odd, versions={"product-commit": shas[4]}))
        open_store(str(store)).append(replace(last, versions={"product-commit": shas[62]}))
        out = tmp_path / f"out-{len(nightly)}"
        history = ("--history", str(store), "--dir", str(out))
        monkeypatch.setattr(trial, "start", reads_words)
        assert bisect.main(["quickstart.yaml", *ends, *history]) == 0
        kept = json.loads((out / "bisect.json").read_text())
        assert kept["commits"][0]["sha"] == shas[2]
        assert [one["subject"] for one in kept["answer"]["suspects"]] == ["change 40 | <b>"]
        counts.append(len(kept["starts"]))
    assert counts[1] < counts[0]
    assert bisect.main(["quickstart.yaml", *ends, "--dir", str(tmp_path / "none")]) == 2


def test_a_budget_of_device_minutes_is_kept(
    search: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.Purse, "pay", lambda purse, *_: purse.spent.append(10.0))
    repository = product(tmp_path, steps(16, 9, "100", "95"))
    assert search(repository, "--budget", "85") == 4
    assert told(tmp_path)["device_minutes"] == [10.0] * 8
    assert search(repository, "--budget", "85") == 4  # and after it goes on
    assert search(repository, "--budget", "1000") == 0


def test_what_moves_is_written_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = product(tmp_path, steps(3, 1, "100", "80"))
    given = []

    def start(case: Path, number: int, words: list[str], directory: Path, env: object) -> Started:
        kept = load_case(case)
        given.append((kept.nodes[0].envs["AT"], words, [one.name for one in kept.benchmarks]))
        return reads_words(case, number, words, directory, env)

    monkeypatch.setattr(trial, "start", start)
    argv = ["quickstart.yaml", "--repository", f"p={repository}", "--good", "main~2"]
    argv += ["--set", "env_common.AT={p.dir}@{p} {other}", "--dir", str(tmp_path / "out")]
    argv += ["--metric", "chat output_throughput", "--profile", "x-{p}"]
    assert bisect.main(argv) == 0
    sha = git(repository, "rev-parse", "main")
    place = tmp_path / "out" / "product-p"
    assert given[0] == (f"{place}@{sha} {{other}}", ["--profile", f"x-{sha}"], ["chat"])
    argv[argv.index("chat output_throughput")] = "none output_throughput"
    assert bisect.main(argv) == 2


def reads_words(case: Path, number: int, words: object, directory: Path, env: object) -> Started:
    """A start that only reads the speed in a checkout."""
    directory.with_suffix(".log").touch()
    (checkout,) = directory.parent.glob("product*")
    speed = float((checkout / "words").read_text()) * next(NOISE)
    return Started(number, {"chat output_throughput": (speed,)})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--good", "x=main~2"], "where x comes from"),
        (["--good", "main", "--good", "main~1"], "given twice"),
        (["--good", "image=a"], "one end is missing"),
        (["--good", "main~2", "--only", "x"], "holds one case"),
        ([], "has none"),
        (["--good", "main~2", "--install", "pip 'x"], "No closing quotation"),
        (["--good", "main~2", "--install", " "], "found no command"),
        (["--good", "main~2", "--metric", " "], "is unknown"),
    ],
)
def test_ends_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    repository = product(tmp_path, steps(4, 2, "1", "2"))
    argv = ["quickstart.yaml", "--repository", str(repository), "--dir", str(tmp_path / "out")]
    assert bisect.main([*argv, *more]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--budget=nan", "--starts=0", "--repeats=0",
                                    "--install-minutes=nan"])  # fmt: skip
def test_numbers_that_bound_nothing_are_refused(option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        bisect.main(["quickstart.yaml", option])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("nowhere", "main", "has no commit 'nowhere'"),
        ("--output=x", "main", "has no commit"),
        ("main", "main", "the same commit"),
        ("-x", "main", "has no commit '-x'"),
        ("side", "main", "is no ancestor"),
        ("main", "main~1", "is no ancestor"),
    ],
)
def test_ends_that_are_none(tmp_path: Path, good: str, bad: str, words: str) -> None:
    repository = product(tmp_path, steps(4, 2, "1", "2"))
    git(repository, "checkout", "--quiet", "-b", "side", "main~2")
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "aside")
    with pytest.raises(UsageError, match=words):
        axis.between({"p": repository}, {"p": good}, {"p": bad})
    with pytest.raises(UsageError, match="no directory"):
        commits.between(tmp_path / "gone", good, bad)


def test_too_many_commits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MOST", 3)
    repository = product(tmp_path, [{"x": str(n)} for n in range(5)])
    assert len(commits.between(repository, "main~3", "main")) == 4
    with pytest.raises(UsageError, match="4 commits") as found:
        commits.between(repository, "main~4", "main")
    assert "nearer to bad" in found.value.hint


def test_a_submodule_moves_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a commit whose submodule is gone ends the search for now, as infrastructure."""
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "file")
    (tmp_path / "other").mkdir()
    inner = product(tmp_path / "other", [{"a": "1"}, {"a": "2"}])
    repository = product(tmp_path, [{"x": "1"}])
    for commit in ("main~1", "main"):
        if commit == "main~1":
            git(repository, "-c", "protocol.file.allow=always", "submodule", "add", str(inner))
        git(repository / "product", "checkout", "--quiet", git(inner, "rev-parse", commit))
        git(repository, "commit", "--quiet", "-a", "-m", commit)
    clone = commits.Clone(tmp_path / "clone", repository)
    shas = [git(repository, "rev-parse", ref) for ref in ("main~1", "main")]
    builds = []
    for sha, text in zip(shas, "12", strict=True):
        clone.checkout(sha)
        assert (clone.path / "product" / "a").read_text() == text
        builds.append(clone.native(sha))
    assert builds[0] != builds[1]
    inner.rename(tmp_path / "gone")
    with pytest.raises(InfraError, match=r"gone|does not exist|not a git"):
        commits.Clone(tmp_path / "second", repository).checkout(shas[0])


def test_a_shallow_clone_is_refused(tmp_path: Path) -> None:
    source = product(tmp_path, steps(4, 2, "1", "2"))
    git(tmp_path, "clone", "--quiet", "--depth=2", f"file://{source}", "shallow")
    with pytest.raises(UsageError, match="shallow"):
        commits.between(tmp_path / "shallow", "HEAD~1", "HEAD")


def test_commits_that_touch_only_documentation_are_unlikely(tmp_path: Path) -> None:
    repository = product(tmp_path, [{}, {"docs/a.py": "1"}, {"src/a.py": "1"}])
    git(repository, "rm", "--quiet", "count")
    git(repository, "commit", "--quiet", "-m", "no count")
    (repository / "docs" / "b.md").write_text("x")
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "words")
    found = commits.between(repository, "main~4", "main")
    assert [one.weight for one in found] == [1, 1, 1, 1, commits.UNLIKELY]


def test_a_build_that_hangs_is_ended(tmp_path: Path) -> None:
    repository = product(tmp_path, steps(2, 1, "1", "2"))
    clone = commits.Clone(tmp_path / "clone", repository)
    clone.checkout(git(repository, "rev-parse", "main"))
    log = tmp_path / "log"
    assert not clone.install(["sleep", "60"], log, 0.2)
    assert b"not done after" in log.read_bytes()
    with pytest.raises(UsageError, match="no-such-program"):
        clone.install(["no-such-program"], log, 1)


@pytest.mark.timing
@pytest.mark.timeout(500)
def test_a_whole_search_with_real_fleets(tmp_path: Path) -> None:
    engine = f'exec env TEST_ENGINE="$(cat "${{0%/*}}/../words")" {fleet.HERE}/bin/vllm "$@"\n'
    history = steps(5, 3, "load=0 itl=0.002", "load=0 itl=0.02")
    history[0]["bin/vllm"] = f"#!/bin/sh\n{engine}"
    repository = product(tmp_path, history)
    case = fleet.written(tmp_path, fleet.case(1))
    argv = [sys.executable, "-m", "ci.compare.bisect", str(case), "--repository", str(repository)]
    argv += ["--good", "main~4", "--bad", "main", "--dir", str(tmp_path / "out"), "--repeats", "1"]
    argv += ["--on", "local", "--bench", "smoke"]
    done = subprocess.run(argv, cwd=ROOT, text=True, check=False,
                          env=fleet.environment(tmp_path), capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert culprits(tmp_path) == ["change 3 | <b>"]
