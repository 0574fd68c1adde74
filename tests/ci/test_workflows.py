"""The workflows: valid, safe, pinned, and their shell does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci.nightly import hunt, jobs, matrix, reply
from steps.core.errors import UsageError

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
BIN = Path(sys.executable).parent


def load(name: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def step(workflow: str, job: str, name: str) -> str:
    steps = load(workflow)["jobs"][job]["steps"]
    return str(next(s["run"] for s in steps if s.get("name") == name))


def shell(script: str, cwd: Path, stubs: dict[str, str], **env: str) -> subprocess.Popen[str]:
    """Run a block as GitHub does, with stand-ins for its programs first on PATH."""
    bin_dir = cwd / "bin"
    bin_dir.mkdir(exist_ok=True)
    for name, body in stubs.items():
        stub = bin_dir / name
        stub.write_text("#!/bin/bash\n" + textwrap.dedent(body))
        stub.chmod(0o755)
    file = cwd / "block.sh"
    file.write_text(script)
    return subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(file)],
        cwd=cwd,
        env={"PATH": f"{bin_dir}:{os.environ['PATH']}", "RUNNER_TEMP": str(cwd), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=20)
    return process.returncode, output


def check_offline(tool: str, files: list[Path]) -> None:
    """Let a checker look at workflows, where it is installed."""
    program = shutil.which(tool, path=f"{BIN}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{tool} is not installed; nox -s workflows runs it")
    options = {
        "check-jsonschema": ["--builtin-schema", "vendor.github-workflows"],
        "zizmor": ["--persona", "auditor", "--offline", "--no-progress"],
    }[tool]
    done = subprocess.run([program, *options, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", ["check-jsonschema", "zizmor"])
def test_workflows_pass_the_offline_checkers(tool: str) -> None:
    check_offline(tool, FILES)


def test_what_a_pull_request_asks_for_is_never_kept_in_the_history() -> None:
    run = next(s for s in load("_multinode.yaml")["jobs"]["run"]["steps"] if s.get("name") == "Run")
    assert run["env"]["MULTINODE_PULL_REQUEST"] == "${{ inputs.pull }}"
    of_command = [job for job in load("command.yaml")["jobs"].values() if "uses" in job]
    of_night = [job for job in load("nightly.yaml")["jobs"].values() if "uses" in job]
    assert of_command and of_night
    assert {job["with"]["pull"] for job in of_command} == {"${{ needs.ask.outputs.pull }}"}
    assert {job["with"]["ref"] for job in of_night} == {"${{ inputs.ref }}"}
    assert load("_case.yaml")["jobs"]["run"]["with"]["pull"] == "${{ inputs.ref }}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_and_permissions_said(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"uses: (\S+.*)", text):
        assert line.startswith("./") or re.search(r"@[0-9a-f]{40} # v\d", line), line
    assert "permissions" in yaml.safe_load(text)


def test_everything_is_installed_before_there_is_a_kubeconfig() -> None:
    steps = load("_multinode.yaml")["jobs"]["run"]["steps"]
    names = [entry.get("name") for entry in steps]
    place, run = names.index("Place the kubeconfig"), names.index("Run")
    before, after = steps[:place], steps[place:]
    assert any("--install-only -- --on k8s" in entry.get("run", "") for entry in before)
    assert "secrets." not in str(before) and "KUBECONFIG" not in str(before)
    assert 'nox -s "$SESSION" --no-install' in steps[run]["run"]
    for entry in after:
        script = entry.get("run", "")
        assert "pip" not in script and script.count("nox ") == script.count("--no-install")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nox_is_installed_as_it_is_locked(path: Path) -> None:
    installs = re.findall(r"pip install.*", path.read_text(encoding="utf-8"))
    assert set(installs) <= {"pip install --quiet --require-hashes -r ci/tools/locks/nox.txt"}


def test_workflows_of_a_request_have_no_secret() -> None:
    for path in FILES:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "pull_request" in found[True]:  # YAML reads `on` as a truth value
            assert found["permissions"] == {"contents": "read"}
            assert not any("permissions" in job for job in found["jobs"].values())
            assert "secrets." not in path.read_text(encoding="utf-8")
        assert "pull_request_target" not in found[True]


def test_what_tries_newer_packages_may_write_nothing() -> None:
    """New packages run in jobs that only read; the job that opens the request installs nothing."""
    jobs = load("locks.yaml")["jobs"]
    for name, job in jobs.items():
        script = " ".join(entry.get("run", "") for entry in job["steps"])
        if name == "open":
            assert "pip" not in script and "nox" not in script and "python" not in script
        else:
            assert job["permissions"] == {"contents": "read"}
            assert "GH_TOKEN" not in str(job)


def repository(place: Path) -> None:
    (place / "ci" / "tools" / "locks").mkdir(parents=True)
    (place / "ci" / "tools" / "locks" / "node.txt").write_text("a==1\n")
    (place / "other.txt").write_text("mine\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], cwd=place, check=True)


@pytest.mark.parametrize("newer", [True, False])
def test_the_difference_of_the_locks_is_handed_on(tmp_path: Path, newer: bool) -> None:
    repository(tmp_path)
    out = tmp_path / "output"
    new = "echo a==2 > ci/tools/locks/node.txt; echo b==1 > ci/tools/locks/new.txt"
    stubs = {"nox": f'echo "$*"; {new if newer else ":"}'}
    script = step("locks.yaml", "newest", "Make the locks")
    code, output = finish(shell(script, tmp_path, stubs, GITHUB_OUTPUT=str(out)))
    assert code == 0 and "-s lock -- --upgrade" in output
    assert out.read_text() == f"changed={str(newer).lower()}\n"
    patch = (tmp_path / "locks.patch").read_text()
    assert ("+a==2" in patch and "+b==1" in patch) == newer


@pytest.mark.parametrize(("there", "verb"), [("", "pr create"), ("17", "pr edit 17")])
def test_the_difference_becomes_a_pull_request(tmp_path: Path, there: str, verb: str) -> None:
    repository(tmp_path)
    (tmp_path / "locks.patch").write_text(
        "--- a/ci/tools/locks/node.txt\n+++ b/ci/tools/locks/node.txt\n@@ -1 +1 @@\n-a==1\n+a==2\n"
        "--- a/other.txt\n+++ b/other.txt\n@@ -1 +1 @@\n-mine\n+theirs\n"
    )
    gh = f"""
        echo "gh $*"
        [ "$2" = list ] && echo "{there}" || true
    """.replace('echo "gh $*"', 'echo "gh $*" >&2')
    real = shutil.which("git")
    stubs = {"gh": gh, "git": f'[ "$1" = push ] && echo "git $*" || exec {real} "$@"'}
    script = step("locks.yaml", "open", "Open the pull request")
    told = {"TRIED": "failure", "REPO": "o/r", "RUN": "https://runs/1", "BASE": "main"}
    code, output = finish(shell(script, tmp_path, stubs, **told))
    assert code == 0, output
    assert f"gh {verb}" in output and "git push" in output
    assert "failure" in output and "https://runs/1" in output
    shown = subprocess.run(
        [str(real), "show", "--stat", "HEAD"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "node.txt" in shown.stdout and "other.txt" not in shown.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_expression_stands_in_a_shell_block(path: Path) -> None:
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        for entry in job.get("steps", []):
            assert "${{" not in entry.get("run", ""), entry


def text_of(workflow: str) -> str:
    return (ROOT / jobs.FOLDER / workflow).read_text(encoding="utf-8")


@pytest.mark.parametrize("workflow", jobs.WORKFLOWS)
def test_the_jobs_are_those_of_the_matrix(workflow: str) -> None:
    text = text_of(workflow)
    fresh = jobs.made(workflow, text, matrix.load(ROOT / matrix.MATRIX).socs)
    assert text == fresh, "run `nox -s matrix -- --write-jobs`"


SOCS = ("a2", "a3-560t", "310p")


@pytest.mark.parametrize(("workflow", "first"), [("nightly.yaml", "plan"), ("command.yaml", "ask")])
def test_each_soc_has_a_job_with_its_secret_and_no_other(
    tmp_path: Path, workflow: str, first: str
) -> None:
    text = jobs.made(workflow, text_of(workflow), SOCS)
    assert jobs.made(workflow, text, SOCS) == text
    whole = yaml.safe_load(text)
    made = whole["jobs"]
    last = "tell" if workflow == "nightly.yaml" else "answer"
    assert list(made) == [first, "soc-a2", "soc-a3-560t", "soc-310p", last]
    assert made[last]["needs"] == list(made)[:-1]
    assert made["soc-310p"]["secrets"] == {"kubeconfig-b64": "${{ secrets.KUBECONFIG_310P_B64 }}"}
    secret = made["soc-a3-560t"]["secrets"]["kubeconfig-b64"]
    assert secret == "${{ secrets.KUBECONFIG_A3_560T_B64 }}"
    if workflow == "command.yaml":  # what a calling repository has to hand over
        wanted = {f"KUBECONFIG_{soc}_B64" for soc in ("A2", "A3_560T", "310P")}
        assert set(whole[True]["workflow_call"]["secrets"]) == wanted
    entries = tuple(
        matrix.Entry(soc, soc, "c.yaml", 2, soc, ("npu",), "nightly", "us") for soc in SOCS
    )
    told = matrix.as_github(matrix.Matrix(entries, {}), entries)
    known = {line.split("=")[0] for line in told.splitlines()} | OUTPUTS
    assert known >= set(made[first]["outputs"])
    for name in (*made, *made[first]["outputs"]):
        assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_-]*", name)
    check_offline("zizmor", [write(tmp_path, text)])
    check_offline("check-jsonschema", [write(tmp_path, text)])


#: What ``nox -s ask`` prints beside the jobs.
OUTPUTS = {"session", "words", "repository", "ref", "pull", "about"}


def test_a_workflow_without_its_marks_is_refused() -> None:
    with pytest.raises(UsageError, match="marked"):
        jobs.made("nightly.yaml", "jobs: {}\n", SOCS)


def test_inputs_and_outputs_fit_together() -> None:
    """What a caller gives is an input of what it calls; what it reads of a job is an output."""
    for path in FILES:
        whole = yaml.safe_load(path.read_text(encoding="utf-8"))
        for job in whole["jobs"].values():
            if "uses" in job:
                called = load(Path(job["uses"].split(" ")[0]).name)[True]["workflow_call"]
                wanted = {k for k, v in called["inputs"].items() if v.get("required")}
                assert wanted <= set(job["with"]) <= set(called["inputs"])
                assert set(job["secrets"]) == set(called["secrets"])
        for name, output in re.findall(r"needs\.([\w-]+)\.outputs\.([\w-]+)", str(whole)):
            job = whole["jobs"][name]
            if "uses" in job:
                called = load(Path(job["uses"]).name)[True]["workflow_call"]
                assert output in called["outputs"], (path.name, output)
            else:
                assert output in job["outputs"], (path.name, output)


def test_only_two_jobs_of_a_comment_may_write_and_they_run_nothing_of_the_request() -> None:
    whole = load("command.yaml")
    assert whole["permissions"] == {}
    writing = {
        name
        for name, job in whole["jobs"].items()
        if "write" in job.get("permissions", {}).values()
    }
    assert writing == {"ask", "answer"}
    for name in writing:
        job = whole["jobs"][name]
        for entry in job["steps"]:
            if str(entry.get("uses", "")).startswith("actions/checkout"):
                assert entry["with"]["ref"] == "${{ job.workflow_sha }}"
                assert entry["with"]["repository"] == "${{ job.workflow_repository }}"
        assert "github.event.comment.body" not in str(job["steps"])
        assert "secrets." not in str(job)
    for name in writing:  # packages come before the token
        steps = whole["jobs"][name]["steps"]
        held = next(at for at, entry in enumerate(steps) if "GITHUB_TOKEN" in entry.get("env", {}))
        assert any("--install-only" in entry.get("run", "") for entry in steps[:held])
        assert "--no-install" in steps[held]["run"]


def test_what_jobs_leave_is_what_the_reply_reads() -> None:
    steps = load("_multinode.yaml")["jobs"]["run"]["steps"]
    [left] = [one for one in steps if one.get("name") == "Keep what the reply needs"]
    choice = "inputs.session == 'bisect' && 'found' || 'said'"
    assert left["with"]["name"] == f"_${{{{ {choice} }}}}-${{{{ inputs.name }}}}"
    assert (reply.SAID, reply.FOUND) == ("_said-", "_found-")
    files = {Path(line).name for line in left["with"]["path"].split()}
    assert files == {"verdict.json", "compare.json", "comment.md", hunt.TEXT}
    for workflow, job in (("nightly.yaml", "tell"), ("command.yaml", "answer")):
        fetched = [one["with"] for one in load(workflow)["jobs"][job]["steps"] if "with" in one]
        patterns = [one["pattern"] for one in fetched if "pattern" in one]
        assert patterns == ["_said-*", "_found-*"][: len(patterns)] and patterns
        assert not re.match(matrix.NAME, "_said-x")  # no entry's own files are taken for it


def test_a_search_is_off_unless_a_variable_says_how_much() -> None:
    case = load("_case.yaml")
    assert "vars.MULTINODE_BISECT_MINUTES || ''" in case["jobs"]["run"]["with"]["bisect"]
    assert case["jobs"]["bisect"]["if"] == "${{ !cancelled() && needs.run.outputs.words != '' }}"
    steps = load("_multinode.yaml")["jobs"]["run"]["steps"]
    [decide] = [one for one in steps if one.get("id") == "decide"]
    assert "inputs.bisect != ''" in decide["if"] and decide["continue-on-error"] is True
    assert load("_multinode.yaml")[True]["workflow_call"]["inputs"]["bisect"]["default"] == ""
    assert "bisect" not in str(load("command.yaml"))


def write(folder: Path, text: str) -> Path:
    """The workflow where checkers take it for one."""
    made = folder / ".github" / "workflows" / "nightly.yaml"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text, encoding="utf-8")
    return made


ARGS = 'printf "%s\\n" "$*"'


@pytest.mark.parametrize(
    ("names", "day", "expected"),
    [
        ("", "3", "--cadence nightly --format github"),
        ("", "7", "--cadence nightly --cadence weekly --format github"),
        ("one two", "7", "--only one two --format github"),
        ('$(touch pwned) "x', "1", '--only $(touch pwned) "x --format github'),
    ],
)
def test_the_plan_chooses_what_is_due(tmp_path: Path, names: str, day: str, expected: str) -> None:
    script = step("nightly.yaml", "plan", "Choose what is due")
    out = tmp_path / "output"
    stubs = {"nox": ARGS, "date": f"echo {day}"}
    code, _ = finish(shell(script, tmp_path, stubs, NAMES=names, GITHUB_OUTPUT=str(out)))
    assert code == 0
    assert out.read_text().strip() == f"-s matrix -- {expected}"
    assert not (tmp_path / "pwned").exists()


def test_a_failing_plan_fails_the_job(tmp_path: Path) -> None:
    script = step("nightly.yaml", "plan", "Choose what is due")
    out = str(tmp_path / "output")
    code, _ = finish(shell(script, tmp_path, {"nox": "exit 2"}, NAMES="", GITHUB_OUTPUT=out))
    assert code == 2


def test_the_kubeconfig_is_readable_by_the_owner_only(tmp_path: Path) -> None:
    script = step("_multinode.yaml", "run", "Place the kubeconfig")
    code, output = finish(shell(script, tmp_path, {}, KUBECONFIG_B64="c2VjcmV0"))
    file = tmp_path / "kubeconfig"
    assert code == 0 and file.read_text() == "secret" and "secret" not in output
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_run_shows_its_log_and_keeps_its_exit_code(tmp_path: Path) -> None:
    script = step("_multinode.yaml", "run", "Run")
    stubs = {"nox": f"{ARGS}; echo working $GITHUB_STEP_SUMMARY; exit 4"}
    env = {"CASE": "a b.yaml", "PROFILE": "a3", "SESSION": "multinode"}
    env["GITHUB_STEP_SUMMARY"] = "/the/summary"
    code, output = finish(shell(script, tmp_path, stubs, WORDS="", **env))
    assert code == 4
    assert "-s multinode --no-install -- a b.yaml --on k8s --profile a3 --run-dir run" in output
    assert "working /the/summary" in output
    env["SESSION"] = "compare"
    code, output = finish(
        shell(script, tmp_path, stubs, WORDS='--b x=y@z $(touch pwned) * "', **env)
    )
    wanted = '-s compare --no-install -- a b.yaml --b x=y@z $(touch pwned) * " --on k8s'
    assert f"{wanted} --profile a3 --dir run" in output and "/the/summary" not in output
    assert not (tmp_path / "pwned").exists()
    assert "working" in output


def test_a_cancelled_job_lets_the_run_collect_its_files(tmp_path: Path) -> None:
    nox = """
        trap 'mkdir -p run; echo interrupted > run/summary.md; exit 130' TERM
        echo started
        while :; do sleep 0.05; done
    """
    run = shell(
        step("_multinode.yaml", "run", "Run"), tmp_path, {"nox": nox}, CASE="c", PROFILE="p"
    )
    known = [(tmp_path / "run.log", "started"), (tmp_path / "run.pid", "\n")]
    deadline = time.monotonic() + 60
    while any(text not in (file.read_text() if file.exists() else "") for file, text in known):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.kill()
    (tmp_path / "kubeconfig").write_text("secret")
    summary = tmp_path / "step-summary"
    script = step("_multinode.yaml", "run", "Wind up").replace("sleep 1", "sleep 0.05")
    code, _ = finish(shell(script, tmp_path, {}, GITHUB_STEP_SUMMARY=str(summary)))
    run.communicate(timeout=60)
    assert code == 0
    assert summary.read_text() == "interrupted\n"
    assert not (tmp_path / "kubeconfig").exists()


def test_winding_up_after_a_finished_run_does_nothing_but_tidy(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("secret")
    summary = tmp_path / "step-summary"
    script = step("_multinode.yaml", "run", "Wind up")
    code, _ = finish(shell(script, tmp_path, {}, GITHUB_STEP_SUMMARY=str(summary)))
    assert code == 0 and not summary.exists() and not (tmp_path / "kubeconfig").exists()


@pytest.mark.parametrize(("bisect", "sessions"), [("", "multinode"), ("2000", "multinode hunt")])
def test_what_decides_on_a_search_is_installed_where_it_is_on(
    tmp_path: Path, bisect: str, sessions: str
) -> None:
    script = step("_multinode.yaml", "run", "Install")
    started = shell(script, tmp_path, {"nox": ARGS}, SESSION="multinode", BISECT=bisect)
    assert finish(started) == (0, f"-s {sessions} --install-only -- --on k8s\n")


def test_a_search_is_decided_on_and_the_decision_is_shown(tmp_path: Path) -> None:
    nox = 'mkdir -p run; echo "**No search**" > run/hunt.md; echo "words=$*"'
    out, summary = tmp_path / "out", tmp_path / "summary"
    env = {"CASE": "a b.yaml", "MINUTES": "2000", "DAYS": "3", "GITHUB_OUTPUT": str(out)}
    script = step("_multinode.yaml", "run", "Decide on a search")
    started = shell(script, tmp_path, {"nox": nox}, GITHUB_STEP_SUMMARY=str(summary), **env)
    assert finish(started)[0] == 0
    words = "-s hunt --no-install -- a b.yaml --run run --minutes 2000 --days 3"
    assert out.read_text() == f"words={words}\n" and "No search" in summary.read_text()


def test_what_is_searched_is_cloned(tmp_path: Path) -> None:
    script = step("_multinode.yaml", "run", "Fetch what is searched")
    sources = "vllm=https://h/v.git vllm-ascend=https://h/a.git"
    code, output = finish(shell(script, tmp_path, {"git": ARGS}, SOURCES=sources))
    assert code == 0 and output.splitlines() == [
        "clone --quiet --no-checkout -- https://h/v.git products/vllm",
        "clone --quiet --no-checkout -- https://h/a.git products/vllm-ascend",
    ]


def test_what_a_comment_starts_is_printed_for_the_workflow(tmp_path: Path) -> None:
    script = step("command.yaml", "ask", "Ask")
    out = tmp_path / "out"
    env = {"PRODUCT": "", "HARNESS": "o/multinode", "HARNESS_REF": "c", "GITHUB_OUTPUT": str(out)}
    assert finish(shell(script, tmp_path, {"nox": 'printf "<%s>" "$@"'}, **env))[0] == 0
    assert "<--product><><--harness><o/multinode><--harness-ref><c>" in out.read_text()
    assert finish(shell(script, tmp_path, {"nox": "exit 2"}, **env))[0] == 2


@pytest.mark.parametrize(
    ("workflow", "job", "name"),
    [("command.yaml", "answer", "Answer"), ("nightly.yaml", "tell", "Tell")],
)
def test_the_reply_is_told_what_it_needs(
    tmp_path: Path, workflow: str, job: str, name: str
) -> None:
    summary = tmp_path / "summary"
    env = {"ENTRIES": '{"include": []}', "ABOUT": "`x` $(touch pwned)", "ISSUE": ""}
    script = step(workflow, job, name)
    stub = {"nox": 'printf "<%s>" "$@"'}
    assert finish(shell(script, tmp_path, stub, GITHUB_STEP_SUMMARY=str(summary), **env))[0] == 0
    said = summary.read_text()
    assert '<told><--entries><{"include": []}>' in said
    assert ("<--about=`x` $(touch pwned)>" if job == "answer" else "<--issue><>") in said
    assert not (tmp_path / "pwned").exists()


def test_the_page_shows_what_a_product_puts_into_its_repository(tmp_path: Path) -> None:
    """docs/pull-requests.md: what it shows passes the checkers and hands over what is wanted."""
    page = (ROOT / "docs" / "pull-requests.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```yaml workflow\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    called = load("command.yaml")[True]["workflow_call"]
    [job] = yaml.safe_load(text)["jobs"].values()
    assert re.fullmatch(r"\S+/\.github/workflows/command\.yaml@[0-9a-f]{40}", job["uses"])
    assert set(job["with"]) == set(called["inputs"])
    assert set(job["secrets"]) <= set(called["secrets"])
    given = job["permissions"]
    for each in load("command.yaml")["jobs"].values():
        for scope, level in each["permissions"].items():
            assert given.get(scope) in (level, "write"), scope
    check_offline("zizmor", [write(tmp_path, text)])
    check_offline("check-jsonschema", [write(tmp_path, text)])
