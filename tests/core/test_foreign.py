"""One hostile text through every sink: none obeys it, and none is broken by it."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from ci.backends import Request
from ci.nightly import history
from ci.report import closing, junit
from ci.tools import plots
from k8s import render as manifests
from steps.core import foreign
from steps.core.errors import InfraError, Place, Problem
from steps.core.record import outcome
from steps.core.record.events import Event, console_line
from steps.core.record.rundir import read_json, write_json, write_text
from steps.core.redaction import Redactor
from steps.lint import formats
from tests.ci import runs
from tests.core.cases import ROOT
from tests.core.records import death
from tests.core.test_house import modules
from tests.faults.rehearse import environment
from tests.realpath import fleet

OBEYED = "".join(map(chr, [*range(1, 9), 11, 12, *range(14, 32), *range(0x7F, 0xA0)]))
LINE = (
    f"{OBEYED}\x1b]0;title\x07\x1b]8;;http://evil\x1b\\\x1b[2J\x1b[31m\x9b2J\x9d0;t\x9c"
    "```` ``` ]]> <script>alert(1)</script> <!-- <h1> [x](http://evil) | $x^{$ ##[add-mask]x "
    "\u202e\u2066\u200f\ud800\udc9b\ufffe"
)
FORGED = ("::add-mask::x", "  ::stop-commands::x", "# PASS forged", "error: forged", "```")
HOSTILE = LINE + "".join(f"{end}{words}" for end in ("\n", "\r", "\r\n") for words in FORGED)
#: What a reader of text may never get; what is shown of it is the sign for what cannot be shown.
SIGNS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\ud800-\udfff]"
)


def escapes(text: str) -> list[str]:
    """What a terminal or a job log would obey, and lines that look like ours."""
    found = [repr(sign) for sign in SIGNS.findall(text)]
    for line in text.split("\n"):
        if line.lstrip().startswith("::") or "##[" in line:
            found.append(line)
        if line.startswith(("# PASS", "error: forged")):
            found.append(line)
    return found


def of_markdown(text: str) -> list[str]:
    """What hostile words would be in Markdown other than words."""
    outside, ticks = [], ""
    for line in text.split("\n"):
        fence = re.match("`{3,}", line)
        if ticks and fence and line.strip() == ticks:
            ticks = ""
        elif fence and not ticks:
            ticks = fence[0]
        elif not ticks:
            outside.append(line)
    found = [line for line in outside if line.startswith("# PASS")] + ["open fence"] * bool(ticks)
    for line in outside:
        bare = re.sub(r"\\.|(`+)[^`].*?[^`]?\1(?!`)", "", line)
        found += re.findall(r"<[a-z/!][^>]*|\]\(", bare)
    return found + escapes(text)


def test_a_stream_obeys_nothing() -> None:
    assert escapes(HOSTILE)
    assert not escapes(foreign.block(foreign.printed(HOSTILE)))
    assert not escapes(foreign.printed(foreign.block(f"error: {HOSTILE}")))
    assert foreign.line(HOSTILE).count("\n") == 0
    assert foreign.printed("x ::y\n", fresh=True) == "x ::y\n"
    assert foreign.printed("::y\n::z", fresh=False) == "::y\n\\::z"
    assert foreign.plain("\x1b[36m(EngineCore pid=1)\x1b[0m up\r\nß→😀\t.") == (
        "(EngineCore pid=1) up\nß→😀\t."
    )


def test_a_block_keeps_the_columns_of_what_it_shows() -> None:
    """A YAML that one copies from a terminal is one."""
    shown = {"benchmarks": {"chat": {"find": {"within": [1, 64]}}}}
    text = foreign.block("Proposed:\n" + yaml.safe_dump(shown))
    assert yaml.safe_load(text.partition("\n")[2]) == shown
    assert foreign.block("error: x\n    hint\n      more") == "error: x\n    hint\n      more"


@pytest.mark.parametrize(
    "piece",
    [
        "\x9d",
        "\x1b]",
        "\x9b0",
        "\x9b0 ",
        "\x1b[",
        "\x1b ",
        "\n",
        " \n",
        "`",
        "\\",
        "<",
        "]",
        "::",
        "#",
    ],
)
def test_long_hostile_text_costs_no_time(piece: str) -> None:
    text = f"::{piece * 50_000}::"
    began = time.process_time()
    for clean in (foreign.printed, foreign.block, foreign.markdown, foreign.code, foreign.json):
        clean(text)
    foreign.fence([text])
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("end", ["\n", "", " \n"])
def test_a_stream_knows_where_a_line_begins(tmp_path: Path, end: str) -> None:
    code = (
        "from steps.core import door; door.install(); "
        f"print('one', end={end!r}); print('  ', end=''); print('::add-mask::x')"
    )
    done = said(tmp_path, "-c", code)
    assert ("\\::" in done) == bool(end), done


def test_markdown_keeps_words_words() -> None:
    page = "\n\n".join(
        [
            f"# {foreign.markdown(HOSTILE)}",
            foreign.fence([HOSTILE, LINE]),
            f"- {foreign.markdown('# PASS forged')} {foreign.code(LINE)}",
        ]
    )
    assert not of_markdown(page)
    assert foreign.markdown(r"\<b> \| |") == r"\\\<b> \\\| \|"
    assert foreign.markdown("ttft_ms <= 2000 `kubectl get`") == "ttft_ms <= 2000 `kubectl get`"
    assert foreign.code("a`b") == "`` a`b ``"


def said(place: Path, *words: str, terminal: bool = False, **env: str) -> str:
    """What a command says on both streams, read as a terminal's reader has it."""
    command = [sys.executable, *words]
    whole = {**environment(place), **env, "PYTHONIOENCODING": "utf-8"}
    if not terminal:
        done = subprocess.run(
            command, cwd=ROOT, env=whole, capture_output=True, timeout=100, check=False
        )
        return (done.stdout + done.stderr).decode("utf-8", "surrogateescape")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command, cwd=ROOT, env={**whole, "TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    heard = b""
    try:
        while data := os.read(ours, 65536):
            heard += data
    except OSError:  # a terminal that everybody has left
        pass
    finally:
        os.close(ours)
        child.wait(60)
    return heard.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[(3[136])?(1;31|0)?m", "", text)


@pytest.fixture
def hostile_case(tmp_path: Path) -> Path:
    """A case whose name, keys and values are hostile as far as YAML and files let them."""
    name = f"\x1b]0;t\x07\x9b2J \u202e::add-mask::x{chr(0xDC9B)}.yaml"
    value = json.dumps(HOSTILE.replace("\ud800", "").replace("\udc9b", "").replace("\ufffe", ""))
    path = tmp_path / name
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    path.write_text(f"{text}\n? {value}\n: {value}\nnum_nodess: {value} # \u202e\n")
    return path


def test_what_is_no_yaml_is_shown_without_its_signs(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_bytes(b"a: 1\nb: \xc2\x9b2J \x1b]0;t\x07 \xe2\x80\xae ::add-mask::x\n")
    for terminal in (True, False):
        told = said(tmp_path, "-m", "steps.validate", str(path), terminal=terminal)
        assert "MN001" in told
        assert "2J" in told
        assert not escapes(without_colours(told))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("style", ["text", "json", "sarif", "junit"])
def test_validate_obeys_no_case(
    hostile_case: Path, tmp_path: Path, style: str, terminal: bool
) -> None:
    words = ("-m", "steps.validate", "--format", style, str(hostile_case))
    told = without_colours(said(tmp_path, *words, terminal=terminal))
    assert "num_nodess" in told
    assert not escapes(told)
    if style in ("json", "sarif"):
        json.loads(told)


def test_github_gets_our_orders_and_no_others(hostile_case: Path, tmp_path: Path) -> None:
    told = said(tmp_path, "-m", "steps.validate", "--format", "github", str(hostile_case))
    ours = ("::error file=", "::warning file=")
    assert [line for line in told.splitlines() if not line.startswith(ours)] == []
    assert not SIGNS.search(told)


def test_a_refused_case_reaches_no_reader(hostile_case: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = said(tmp_path, "-m", "ci.run", str(hostile_case), "--rehearse", "--run-dir", str(run))
    assert "problem" in told
    assert not escapes(told)
    assert not of_markdown((run / "summary.md").read_text())
    looks_like_a_page((run / "report.html").read_text())
    ElementTree.parse(run / "junit.xml")


def looks_like_a_page(text: str) -> None:
    assert "alert(1)" not in text or "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text
    assert "<h1> [x]" not in text
    assert not SIGNS.search(text)


def hostile_run(tmp_path: Path) -> Path:
    """A run that ended with hostile words wherever an engine or a peer has a say."""
    cause = death(1020.0, 1, process=LINE, log="node-1/server.log", evidence=(HOSTILE, LINE))
    cause = replace(cause, reason=HOSTILE, hint=HOSTILE)
    bench = runs.bench(status="fail", fault="performance", reason=HOSTILE, note=HOSTILE)
    run_dir = runs.make(tmp_path / "run", outcome="crash", cause=cause, benchmarks=(bench,))
    record = read_json(run_dir.node(0).record)
    record["versions"] = {"vllm": HOSTILE}
    record["host"] = HOSTILE
    record["checks"] = [{"name": HOSTILE, "status": "fail", "detail": HOSTILE}]
    record["artifacts"] = [{"path": f"{HOSTILE}.log", "size": 3, "sha256": "0" * 64}]
    record["processes"][0]["exit"] = {"at": 1040.0, "how": HOSTILE, "expected": False}
    write_json(run_dir.node(0).record, record)
    write_text(run_dir.node(0).path / "server.log", HOSTILE)
    return run_dir.path


def test_a_report_of_hostile_words(tmp_path: Path) -> None:
    path = hostile_run(tmp_path)
    run_dir = outcome.RunDir(path)
    closing.settle(run_dir, runs.quickstart(), (), (), pytest.fail)
    assert not of_markdown(run_dir.summary.read_text())
    text = run_dir.junit.read_text()
    assert not SIGNS.search(text)
    found = junit.xml(None, outcome.read(run_dir).verdict)
    assert ElementTree.fromstring(found) is not None
    assert ElementTree.fromstring(text) is not None
    looks_like_a_page((path / "report.html").read_text())
    for style in ("text", "json"):
        told = said(tmp_path, "-m", "steps.report", "--run-dir", str(path), "--format", style)
        assert not escapes(told)
    shown = said(
        tmp_path, "-c",
        "import sys; from pathlib import Path; from steps.core import door; door.install();"
        "from ci.report import closing; from steps.core.record.rundir import RunDir;"
        f"closing.show(RunDir(Path({str(path)!r})))", terminal=True, CI="",
    )  # fmt: skip
    assert "Cause" in shown
    assert not SIGNS.search(re.sub(r"\x1b\[[0-9;]*m", "", shown))


@pytest.mark.parametrize("crash", ["", " crash=load"])
def test_a_run_whose_engine_is_hostile(tmp_path: Path, crash: str) -> None:
    """Its console with every line of the engine, and all that is made of it for a reader."""
    words = f"ERROR RuntimeError: {HOSTILE}".encode("utf-8", "surrogatepass")
    (tmp_path / "says").write_bytes(words + b"\n")
    knobs = f"says={tmp_path / 'says'}{crash}"
    summary = tmp_path / "github.md"
    found = fleet.local(
        tmp_path, fleet.case(1, {0: knobs}), "--verbose", draw=True, GITHUB_ACTIONS="true",
        CI="true", GITHUB_STEP_SUMMARY=str(summary), PYTHONIOENCODING="utf-8",
    )  # fmt: skip
    assert found.code == bool(crash), found.output
    assert "[node-0/server]" in found.output
    assert "add-mask" in found.output
    ours = re.compile(f"::(error|warning) file={re.escape(str(tmp_path / 'case.yaml'))},.*")
    orders = [line[:7] for line in found.output.split("\n") if ours.fullmatch(line)]
    assert orders == ["::error"] * bool(crash) + ["::warni"]
    told = "\n".join(line for line in found.output.split("\n") if not ours.fullmatch(line))
    assert not escapes(told)
    assert not SIGNS.search(found.output)
    assert not of_markdown(summary.read_text())
    assert not of_markdown((found.path / "summary.md").read_text())
    assert ElementTree.parse(found.path / "junit.xml") is not None
    looks_like_a_page((found.path / "report.html").read_text())


def test_history_and_its_pictures(tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = history.Result(
        time=1000.0, run=HOSTILE, case="case", verdict=HOSTILE, rehearsed=False,
        commit=HOSTILE, versions={"vllm": HOSTILE}, benchmarks={HOSTILE: {"accuracy": 1.0}},
    )  # fmt: skip
    for number in range(12):
        changed = {HOSTILE: {"accuracy": 1.0 + (number > 6)}}
        versions = {"vllm": f"{HOSTILE}{number > 6}"}
        run, at = f"{number}{HOSTILE}"[:40], 1000.0 + number
        each = replace(result, run=run, time=at, benchmarks=changed, versions=versions)
        history.open_store(str(store)).append(each)
    picture = tmp_path / "trend.svg"
    words = ("-m", "ci.nightly.trend", "case.yaml", "--store", str(store))
    told = said(tmp_path, *words, "--plot", str(picture))
    assert "plotted to" in told
    assert not escapes(told)
    assert ElementTree.parse(picture) is not None


def test_a_plot_takes_words_for_words() -> None:
    row = plots.Row(HOSTILE, (plots.Bar(0, 9, "a", "$x^{$", HOSTILE),))
    for picture in (
        plots.timeline([row], 1.0, HOSTILE),
        plots.latencies(HOSTILE, {HOSTILE: [(0.0, 1.0)]}),
        plots.percentiles(HOSTILE, {HOSTILE: [1.0, 2.0]}, "ms"),
        plots.trend(HOSTILE, [(0.0, 1.0), (1.0, 2.0)], HOSTILE),
    ):
        ElementTree.fromstring(picture.replace("xlink:", ""))
        assert "x^{$" in picture


def test_events_and_errors_forge_no_line() -> None:
    for what in ("note", "cause", "warning", "waiting", "benchmark", "joined", "answer", "exited"):
        fields = dict.fromkeys(("text", "missing", "member", "address", "url", "process"), HOSTILE)
        shown = console_line(Event(1.0, "run", 0, "join", what, fields), 0.0)
        assert not escapes(foreign.printed(shown)), what
    problem = Problem("MN1", HOSTILE, Place(HOSTILE), HOSTILE, related=(Place(HOSTILE),))
    assert not escapes(foreign.printed(str(problem)))
    assert not SIGNS.search(formats.as_github([problem], ()))
    assert formats.as_github([problem], ()).count("\n") == 1


def test_a_line_of_a_log_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the engine says, and however its log is named."""
    request: Any = SimpleNamespace(events=SimpleNamespace(redactor=Redactor()))
    Request.show(request, HOSTILE, HOSTILE)
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert not escapes(foreign.printed(shown))


def test_an_error_forges_no_line(tmp_path: Path) -> None:
    for name in ("InfraError", "RuntimeError", "OSError"):
        code = (
            "from steps.core import door, errors; door.install();"
            f"raise (errors.InfraError if {name!r} == 'InfraError' else {name})({HOSTILE!r})"
        )
        told = said(tmp_path, "-c", code)
        assert told.startswith("error: ")
        assert not escapes(told), name
    assert str(InfraError("a", "b")) == "a\n    b"


def test_a_manifest_says_the_same_in_signs_that_are_shown() -> None:
    import yaml

    value = {"text": HOSTILE.replace("\ud800", "").replace("\udc9b", ""), "a": "one\n::two"}
    text = manifests.written([value])
    assert yaml.safe_load(text) == value
    assert foreign.printed(text) == text


# Nobody goes around


#: Who may write to a stream as it is: colours of ours, GitHub's commands, words between programs.
MAY_GO_AROUND = {
    "steps/core/door.py": "it is the door",
    "steps/validate.py": "colours, annotations",
    "ci/report/annotate.py": "annotations",
    "ci/report/live.py": "the status line",
    "ci/report/closing.py": "the summary on a terminal",
    "steps/core/node/keeper.py": "JSON and archives for the runner",
    "k8s/pod.py": "archives for the runner, and the standard library only",
}
AROUND = re.compile(
    r"door\.own\(|__stdout__|__stderr__|std(out|err)\.buffer|os\.write\((1|2|sys)|fdopen\((1|2)\b"
    r"|Console\((?!file=door\.own)|\.fileno\(\)\s*,\s*b"
)


def test_every_stream_is_the_doors() -> None:
    """Whatever is printed passes the door's streams: every command opens it, nobody goes around."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in modules("steps", "ci", "k8s")
        if AROUND.search(path.read_text())
    }
    found.discard("ci/backends/hosts/cargo.py")  # a loader's text, which speaks to the runner
    assert found == set(MAY_GO_AROUND)


def test_the_documents_for_readers_are_made_of_cleaned_words() -> None:
    """Markdown's signs are not written around words by hand where foreign words are."""
    for name in ("ci/report/closing.py", "steps/core/record/summary.py", "ci/run.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "```" not in node.value, f"{name}:{node.lineno}: use foreign.fence"
