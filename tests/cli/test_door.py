"""The door: an exit code survives whatever becomes of the output, and a failure of ours is 3."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ci import replay
from ci import run as ci_run
from ci.backends import Request
from ci.nightly import history
from ci.report import closing
from steps.core import door
from steps.core.errors import Exit
from steps.core.node import contract
from steps.core.record import upstream
from steps.core.record.records import Cause
from tests.ci import runs
from tests.core.cases import ROOT
from tests.core.records import death
from tests.faults.rehearse import command, environment

#: Modules that people do not start as a verb of ours.
NO_VERBS = {
    "tests/real/make_model.py",  # a script of another environment
    "k8s/pod.py",  # the standard library only, in an image
    "steps/core/system/machine.py",  # goes over SSH as text, to a host that has nothing of ours
}
ENDINGS = ("| true", ">&-", "2>&-", "0<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1")


def shell(line: str, place: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """One command line through bash; the exit code is that of its first command."""
    script = f"{sys.executable} {line}\nexit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={**environment(place), **env}, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """The directory of a run that ended with exit code 1."""
    cause = death(1020.0, 1, log="node-1/server.log")
    return runs.make(tmp_path / "run", outcome="crash", cause=cause, benchmarks=()).path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("-m steps.report --run-dir FAILED", 1),
        ("-m steps.validate FAILED/plan.json", 2),
        ("-m invoke report --run-dir FAILED", 1),
        ("-m ci.run --help", 0),
    ],
)
def test_what_becomes_of_the_output_changes_no_exit_code(
    failed: Path, tmp_path: Path, line: str, code: int, ending: str
) -> None:
    done = shell(f"{line.replace('FAILED', str(failed))} {ending}", tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("ending", ["| head -1", "| grep -q joined", ">/dev/full 2>&1"])
def test_a_run_goes_to_its_end_without_a_reader(tmp_path: Path, ending: str) -> None:
    words = command("quickstart.yaml", tmp_path / "run", "--fault", "crash@1:ready")
    done = shell(f"{' '.join(words[1:])} {ending}", tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    told = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert (told["verdict"], told["cause"]["node"]) == ("startup", 1)


def test_a_full_device_is_said_once(failed: Path, tmp_path: Path) -> None:
    done = shell(f"-m steps.report --run-dir {failed} >/dev/full", tmp_path)
    assert done.stderr == "warning: the output is lost: No space left on device\n"


def test_files_that_nobody_takes_are_a_failure_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log").write_bytes(os.urandom(1 << 20))
    done = shell(f"-m steps.core.node.keeper pack {tmp_path} | true", tmp_path)
    assert (done.returncode, done.stderr) == (3, "error: Broken pipe\n")
    assert not list((tmp_path / "scratch").iterdir())


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path: Path) -> None:
    """Neither here nor in a process that is started from here."""
    own = "assert open('/dev/null').fileno() > 2"
    script = tmp_path / "script.py"
    script.write_text(
        f"import subprocess, sys\nfrom steps.core import door\ndoor.install()\n{own}\n"
        f"subprocess.run([sys.executable, '-c', {own!r}], check=True)\n"
    )
    done = shell(f"{script} 0<&- >&- 2>&-", tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import os; os.set_blocking(1, False); from steps.core import door; door.install();"
        "[print('x' * 99) for _ in range(9999)]"
    )
    done = shell(f'-c "{code}" | (sleep 0.5; wc -c)', tmp_path)
    assert (done.returncode, int(done.stdout)) == (0, 999900), done.stderr


def test_a_terminal_that_lacks_a_sign_ends_no_run(tmp_path: Path) -> None:
    code = "from steps.core import door; door.install(); print('\N{CHECK MARK} PASS')"
    done = shell(f'-c "{code}"', tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "? PASS\n"), done.stderr


def fail(*_ignored: object) -> int:
    raise ValueError(f"odd\nthing {os.environ['MY_TOKEN']}")


def test_a_failure_of_ours_is_3_one_line_and_a_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "very-secret-thing")

    def work(arguments: argparse.Namespace) -> int:
        door.keep_in(tmp_path)
        return fail()

    assert door.Verb("odd", "", door.no_options, work)([]) == Exit.INFRA
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the harness itself failed: ValueError: odd thing <redacted>" in told
    kept = (tmp_path / "harness-error.log").read_text()
    assert str(tmp_path / "harness-error.log") in told
    assert "Traceback" in kept and "in fail" in kept and "very-secret-thing" not in kept


def test_without_a_run_the_traceback_is_where_only_its_owner_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(door, "_home", None)
    assert door.Verb("odd", "", door.no_options, lambda _: 1 // 0)([]) == Exit.INFRA
    (place,) = tmp_path.glob("multinode-*/harness-error.log")
    assert str(place) in capsys.readouterr().err
    assert place.parent.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("module", ["steps.validate", "ci.run", "k8s.render", "invoke"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("import absent", "the Python package 'absent' is not installed"),
        ("raise ValueError('torn')", "the harness itself failed: ValueError: torn"),
    ],
)
def test_an_import_that_fails_is_3(tmp_path: Path, module: str, content: str, told: str) -> None:
    (tmp_path / "cerberus.py").write_text(content)
    words = "validate" if module == "invoke" else "case.yaml"
    done = shell(f"-m {module} {words}", tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == Exit.INFRA
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "package", "extra"),
    [
        ("-m k8s.render quickstart.yaml --profile cpu", "urllib3", "k8s"),
        ("-m k8s.janitor", "kubernetes", "k8s"),
        ("-m invoke fetch --name x", "kubernetes", "k8s"),
        ("-m invoke fetch --name x", "urllib3", "k8s"),
        ("-m invoke follow --name x", "kubernetes", "k8s"),
        ("-m ci.run configs/quickstart.yaml --on k8s --profile cpu", "websocket", "k8s"),
        ("-m ci.run configs/quickstart.yaml --on k8s --profile cpu", "kubernetes", "k8s"),
        ("-m ci.report.html RUN", "jinja2", "runner"),
        ("-m ci.doctor --for k8s", "kubernetes", "k8s"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_brings_it(
    failed: Path, tmp_path: Path, line: str, package: str, extra: str
) -> None:
    absent = f"No module named {package!r}"
    hidden = f"raise ModuleNotFoundError({absent!r}, name={package!r})"
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, sys\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}: {hidden}\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    config = "{clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], current-context: c,"
    config += (
        " contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}"
    )
    (tmp_path / "config").write_text(config)
    env = {"PYTHONPATH": str(tmp_path), "KUBECONFIG": str(tmp_path / "config")}
    done = shell(line.replace("RUN", str(failed)), tmp_path, **env)
    said = done.stdout + done.stderr
    assert done.returncode == Exit.INFRA, said
    assert f"python3 -m pip install -e '.[{extra}]'" in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        ("argparse", -2, ""),  # before the door is there: as any program that a signal ends
        ("cerberus", 130, "interrupted\n"),
    ],
)
def test_an_interrupt_while_modules_are_loaded_shows_no_traceback(
    tmp_path: Path, module: str, code: int, said: str
) -> None:
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{module}.py").write_text(text)
    env = {**environment(tmp_path), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    argv = [sys.executable, "-m", "steps.validate", "configs/quickstart.yaml"]
    with subprocess.Popen(argv, cwd=ROOT, env=env, text=True, stdout=-1, stderr=-1) as popen:
        out, errors = popen.communicate(timeout=60)
    assert (popen.returncode, out, errors) == (code, "", said)


@pytest.mark.parametrize("before", [False, True])
def test_programs_that_an_interrupt_ends_early_are_its_consequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Node programs still load their modules, and leave no record, when Ctrl-C comes."""

    def ended(request: Request) -> tuple[Cause, ...]:
        if before:
            return (replace(death(time.time() - 5.0, 1, log="node-1/server.log"), kind="lost"),)
        os.kill(os.getpid(), signal.SIGINT)
        return (contract.lost(0, "exited with code 130", time.time()),)

    def interrupted_after(request: Request) -> tuple[Cause, ...]:
        found = ended(request)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(ci_run, "backend", lambda name: interrupted_after)
    code = ci_run.main(["configs/quickstart.yaml", "--run-dir", str(tmp_path / "run")])
    told = json.loads((tmp_path / "run" / "verdict.json").read_text())
    if before:
        assert code != 130, "it had died before"
    else:
        assert (code, told["verdict"]) == (130, "interrupted")


def test_every_extra_of_ours_is_known() -> None:
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    for package, extra in door.EXTRAS.items():
        assert extra in extras, package
    for extra in ("runner", "report", "k8s"):
        names = re.findall(r"(?m)^([\w-]+)", extras[extra])
        assert {name.replace("-", "_") for name in names} <= door.EXTRAS.keys()


def test_a_thread_that_fails_shows_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("MY_TOKEN", "very-secret-thing")
    monkeypatch.setattr(door, "_home", tmp_path)
    door.install()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "error: the harness itself failed: ValueError" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "harness-error.log").read_text()


@pytest.mark.parametrize("flags", ["-O", "-OO", "-OOb"])
def test_an_optimized_python_works(tmp_path: Path, flags: str) -> None:
    done = shell(f"{flags} -m steps.validate configs/quickstart.yaml", tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 file: no problems\n"), done.stderr
    inherited = shell("-m steps.validate configs/quickstart.yaml", tmp_path, PYTHONOPTIMIZE="2")
    assert (inherited.returncode, inherited.stdout) == (0, done.stdout), inherited.stderr


@pytest.mark.parametrize(
    "words", ["nonsense", "plan", "report --bogus", "report --run-dir", "--bogus", "plan --case"]
)
def test_what_invoke_itself_refuses_is_2(tmp_path: Path, words: str) -> None:
    done = shell(f"-m invoke {words}", tmp_path)
    assert done.returncode == Exit.USAGE
    assert done.stderr.startswith("error: ") and "invoke --list" in done.stderr


def test_what_comes_after_the_verdict_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_ignored: object) -> None:
        raise RuntimeError("odd")

    cause = Cause("lost", "hang", "node 1 is silent", phase="load", at=1000.0)
    monkeypatch.setattr(ci_run, "_carry_out", lambda *_: (cause,))
    for module, name in ((closing, "show"), (closing, "publish"), (ci_run, "clean"),
                         (ci_run, "_collect"), (ci_run.annotate, "show")):  # fmt: skip
        monkeypatch.setattr(module, name, broken)
    run = tmp_path / "run"
    assert ci_run.main(["quickstart.yaml", "--rehearse", "--run-dir", str(run)]) == Exit.DEADLINE
    assert json.loads((run / "verdict.json").read_text())["exit_code"] == Exit.DEADLINE
    assert capsys.readouterr().err.count("warning: ") == 3


def test_a_form_for_others_decides_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_ignored: object) -> None:
        raise KeyError("plain")

    monkeypatch.setattr(upstream, "results", broken)
    run = tmp_path / "run"
    words = ["quickstart.yaml", "--rehearse", "--load-seconds", "0.2", "--run-dir", str(run)]
    assert ci_run.main(words) == Exit.PASS
    assert json.loads((run / "verdict.json").read_text())["verdict"] == "pass"
    assert "KeyError: 'plain'" in capsys.readouterr().err


def test_a_verdict_is_left_when_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carried_out(request: Request) -> tuple[Cause, ...]:
        runs.make(request.run_dir.path)
        return ()

    monkeypatch.setenv("MY_TOKEN", "very-secret-thing")
    monkeypatch.setattr(ci_run, "_carry_out", carried_out)
    monkeypatch.setattr(closing, "settle", fail)
    run = tmp_path / "run"
    assert ci_run.main(["quickstart.yaml", "--rehearse", "--run-dir", str(run)]) == Exit.INFRA
    told = json.loads((run / "verdict.json").read_text())
    assert (told["verdict"], told["exit_code"]) == ("infra", Exit.INFRA)
    assert "the harness itself failed" in told["cause"]["reason"]
    assert "in fail" in (run / "harness-error.log").read_text()
    assert "<error" in (run / "junit.xml").read_text()


def test_a_comparison_that_fails_changes_no_replay(
    failed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "configs" / "quickstart.yaml", failed / "case.yaml")
    monkeypatch.setattr(ci_run, "main", lambda _words: 1)
    monkeypatch.setattr(replay, "compared", fail)
    monkeypatch.setenv("MY_TOKEN", "very-secret-thing")
    assert replay.main([str(failed), "--run-dir", str(tmp_path / "again")]) == 1


def test_the_refusal_of_a_case_stays_2_whatever_becomes_of_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("test_name: 1\n")
    monkeypatch.setattr(closing, "planless", fail)
    given = [str(tmp_path / "bad.yaml"), "--rehearse", "--run-dir", str(tmp_path / "run")]
    assert ci_run.main(given) == Exit.USAGE
    assert "the report was not made" in capsys.readouterr().err


def test_a_result_is_kept_afterwards(
    failed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    for _ in range(2):
        assert history.main([str(failed), "--store", str(store)]) == 0
    assert [result.run for result in history.DirectoryStore(store).results("quickstart")] == [
        "run-1"
    ]
    assert "run-1, quickstart" in capsys.readouterr().out
    assert history.main([str(tmp_path), "--store", str(store)]) == Exit.USAGE


def test_every_command_goes_through_the_door() -> None:
    for room in ("steps", "ci", "k8s"):
        for path in (ROOT / room).rglob("*.py"):
            name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
            assert name == "steps/core/door.py" or "ArgumentParser(" not in text, name
            if '__name__ == "__main__"' in text and name not in NO_VERBS:
                assert re.search(r"door\.(Verb|guarded)\(|alone\.step\(|return command\(", text), (
                    name
                )


def test_every_module_that_a_message_tells_to_start_can_be_started() -> None:
    """``python -m ci.nightly.history`` stood in a hint, and did nothing."""
    for room in ("steps", "ci", "k8s"):
        for path in (ROOT / room).rglob("*.py"):
            for named in re.findall(
                r"python -m ((?:steps|ci|k8s)\.[a-z_.]*[a-z])", path.read_text()
            ):
                module = ROOT / f"{named.replace('.', '/')}.py"
                assert '__name__ == "__main__"' in module.read_text(), f"{path}: {named}"
