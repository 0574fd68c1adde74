"""Git on machines of people: signing, hooks, templates, ignored files, odd environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.nightly import history, matrix
from steps.core.errors import InfraError
from steps.core.system import git as runner
from tests.ci.test_history import result


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose own configuration breaks a plain commit in every way."""
    hooks, template = tmp_path / "hooks", tmp_path / "template"
    for name in ("pre-commit", "commit-msg", "pre-push", "post-checkout"):
        for folder in (hooks, template / "hooks"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("#!/bin/sh\necho hook $0 >&2\nexit 1\n")
            (folder / name).chmod(0o755)
    (template / "info").mkdir()
    (template / "info" / "exclude").write_text("v1\n")
    (tmp_path / "ignored").write_text("*.json\n")
    (tmp_path / "gitconfig").write_text(
        f"[commit]\n gpgSign = true\n[push]\n gpgSign = true\n[gpg]\n program = false\n"
        f"[core]\n hooksPath = {hooks}\n excludesFile = {tmp_path}/ignored\n autocrlf = true\n"
        f"[init]\n templateDir = {template}\n defaultObjectFormat = sha256\n"
        "[user]\n useConfigOnly = true\n[color]\n ui = always\n[diff]\n relative = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "the-repository-of-a-hook"))
    monkeypatch.setenv("GIT_INDEX_FILE", "elsewhere")
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    return tmp_path


def test_a_result_is_kept_whatever_the_machine_wants_of_commits(machine: Path) -> None:
    runner.git(machine, "init", "-q", "--bare", "r.git")
    store = history.open_store(f"git:{machine / 'r.git'}#results")
    store.append(result(1))
    store.append(result(2))
    assert [kept.run for kept in store.results("quickstart")] == ["run-1", "run-2"]


def test_what_a_branch_changed_is_told_by_its_plain_names(machine: Path) -> None:
    clone = machine / "clone"
    (clone / "configs").mkdir(parents=True)
    runner.git(clone, "init", "-q", "-b", "main")
    for name in ("old", "configs/größe.yaml"):
        (clone / name).write_text("1")
        runner.git(clone, "add", ".")
        runner.git(clone, "commit", "-qm", name)
        runner.git(clone, "checkout", "-qB", "change")
    assert matrix.changed_since("main", clone) == ["configs/größe.yaml"]


def test_a_command_that_fails_is_named_as_one_would_type_it(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=r"^git fetch -q /nowhere: .*not.*repository"):
        runner.git(tmp_path, "init", "-q")
        runner.git(tmp_path, "fetch", "-q", "/nowhere")


def test_one_that_takes_too_long_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.git(tmp_path, "init", "-q")
    monkeypatch.setattr(runner, "SECONDS", 0.2)
    with pytest.raises(InfraError, match=r"^git hash-object /dev/zero: .*0.2 s"):
        runner.git(tmp_path, "hash-object", "/dev/zero")


def test_dubious_ownership_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.git(tmp_path, "init", "-q")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("LANGUAGE", "de")
    with pytest.raises(InfraError) as caught:
        matrix.changed_since("main", tmp_path)
    assert f"git merge-base -- main HEAD: {tmp_path} belongs to another user" in str(caught.value)
    assert f"git config --global --add safe.directory {tmp_path}" in caught.value.hint
    monkeypatch.setattr(history.clusters, "ROOT", tmp_path)
    assert history.commit_here() == "" and "belongs to another user" in capsys.readouterr().err
