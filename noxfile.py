# /// script
# dependencies = ["nox>=2024.4.15"]
# ///
"""What people and CI type; each session is one use of the harness."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests"]

os.environ.setdefault("UV_COMPILE_BYTECODE", "1")  # as pip does; else each start compiles anew

HERE = Path(__file__).parent
LOCKS = HERE / "ci" / "tools" / "locks"


@nox.session
def multinode(session: nox.Session) -> None:
    """Run one case to its verdict: CASE [--rehearse | --on k8s|hosts|local]."""
    where = [*session.posargs, *unsaid(session.posargs)]
    install(session, "node", "runner", "report", *backend_extras(where))
    run_module(session, "ci.run")


@nox.session
def validate(session: nox.Session) -> None:
    """Find every mistake in cases before they cost an NPU-minute: [FILES]."""
    install(session, "node")
    run_module(session, "steps.validate")


@nox.session
def matrix(session: nox.Session) -> None:
    """Print what the nightly runs: [--soc a3] [--only NAME...] [--changed-since REV]."""
    install(session, "node")
    run_module(session, "ci.nightly.matrix")


@nox.session
def report(session: nox.Session) -> None:
    """Make the HTML report of a run: [RUN_DIR], default runs/latest."""
    install(session, "node", "runner", "report")
    run_module(session, "ci.report.html")


@nox.session
def export(session: nox.Session) -> None:
    """Export a run as OpenMetrics and as a trace for Perfetto: [RUN_DIR], default runs/latest."""
    install(session, "node", "runner")
    run_module(session, "ci.report.exports")


@nox.session
def replay(session: nox.Session) -> None:
    """Run the case of an earlier run again, with the same plan inputs: RUN [OPTIONS]."""
    where = [*session.posargs, *replayed(session.posargs)]
    install(session, "node", "runner", "report", *backend_extras(where))
    run_module(session, "ci.replay")


@nox.session
def compare(session: nox.Session) -> None:
    """Say whether B is worse than A: CASE [--a REF] --b REF [--b-set PATH=VALUE]."""
    install(session, "node", "runner", "report", *backend_extras(session.posargs))
    run_module(session, "ci.compare.compare")


@nox.session
def bisect(session: nox.Session) -> None:
    """Find the commit that made a case slower or broke it: CASE --repository DIR --good --bad."""
    install(session, "node", "runner", "report", *backend_extras(session.posargs))
    run_module(session, "ci.compare.bisect")


@nox.session(default=False)
def ask(session: nox.Session) -> None:
    """Make jobs of a comment on a pull request: [--product NAME]; a job of GitHub's types it."""
    install(session, "node")
    run_module(session, "ci.nightly.ask")


@nox.session(default=False)
def tell(session: nox.Session) -> None:
    """Say how the jobs of a comment, or of a night, went: DIR --entries JSON [--issue N]."""
    install(session, "node")
    run_module(session, "ci.nightly.tell")


@nox.session(default=False)
def hunt(session: nox.Session) -> None:
    """Decide whether a red run is followed by a search: CASE --run DIR --minutes N."""
    install(session, "node")
    run_module(session, "ci.nightly.hunt")


@nox.session
def size(session: nox.Session) -> None:
    """Find the largest load that holds limits: CASE --slo 'tpot_p99_ms<=50' [--rehearse | --on]."""
    where = [*session.posargs, *unsaid(session.posargs)]
    install(session, "node", "runner", "report", *backend_extras(where))
    run_module(session, "ci.size")


@nox.session
def doctor(session: nox.Session) -> None:
    """Say what this machine lacks for each backend: [--for BACKEND]."""
    every = [] if "--for" in session.posargs else ["k8s"]
    install(session, "node", "runner", *(every or backend_extras(session.posargs)))
    run_module(session, "ci.doctor")


@nox.session
def trend(session: nox.Session) -> None:
    """Show how a case did over time: [CASE] [--store DIR] [--plot FILE.svg]."""
    install(session, "node", "report")
    run_module(session, "ci.nightly.trend")


@nox.session
def baseline(session: nox.Session) -> None:
    """Propose baselines from a case's history, as a diff: CASE [--store DIR] [--write]."""
    install(session, "node")
    run_module(session, "ci.nightly.baseline")


@nox.session
def render(session: nox.Session) -> None:
    """Print a case's Kubernetes manifests, applying nothing: CASE --profile NAME."""
    install(session, "node", "k8s")
    run_module(session, "k8s.render")


@nox.session
def janitor(session: nox.Session) -> None:
    """Remove what expired or cancelled runs left on a cluster: [--older-than 6h]."""
    install(session, "node", "k8s")
    run_module(session, "k8s.janitor")


@nox.session(default=False)
def e2e_k8s(session: nox.Session) -> None:
    """Run the Kubernetes tests on the kubeconfig's cluster: -- --image IMAGE [--namespace NS]."""
    install(session, "node", "runner", "k8s", "dev")
    session.run("python", "-m", "pytest", "tests/kube/test_cluster.py", "--real", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: [PYTEST OPTIONS]."""
    install(session, "node", "runner", "report", "workflows", "k8s", "dev")
    # Tests of processes wait too: a worker more than CI has cores; whichever is done helps others.
    session.run("python", "-m", "pytest", "-n", "3", "--dist", "worksteal", *session.posargs)


@nox.session
def e2e_vllm(session: nox.Session) -> None:
    """Run real vLLM, KV transfer, router and AISBench on this CPU: [PYTEST OPTIONS]."""
    install(session, "node", "runner", "dev")
    run_module(session, "tests.real")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed hostile cases to validate, fix and plan: [--examples 20000] [--file FILE]."""
    install(session, "node", "runner")
    run_module(session, "tests.fuzz")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    install(session, "node", "runner", "k8s", "dev")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")


@nox.session
def workflows(session: nox.Session) -> None:
    """Check the CI workflows offline: their form, their security, the matrix."""
    install(session, "node", "workflows")
    files = [str(path) for path in sorted((HERE / ".github" / "workflows").glob("*.yaml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    session.run("zizmor", "--persona", "auditor", "--offline", "--no-progress", *files)
    session.run("python", "-m", "ci.nightly.matrix")
    session.run("python", "-m", "ci.nightly.known")


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Make the locks of what setup.cfg and the tools ask for: [NAME...] [--upgrade]."""
    install(session, "node", "lock")
    run_module(session, "ci.tools.lock")


# Helpers


def install(session: nox.Session, *sides: str) -> None:
    """Install the named sides as they are locked; `--unlocked`: as new as setup.cfg allows.

    What is installed is noted in the environment, so that pip is not asked again for the same.
    """
    with environment("cannot be installed"):
        stamp = Path(session.bin).parent / "locked.txt"
        if unlocked(session):
            stamp.unlink(missing_ok=True)
            session.install("--quiet", "--upgrade", *requirements(*sides))
            return
        files = [LOCKS / f"{side}.txt" for side in sides]
        wanted = {f"{file.stem} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files}
        noted = set(stamp.read_text().splitlines()) if stamp.exists() else set()
        if wanted <= noted:
            return
        stamp.unlink(missing_ok=True)
        locked = [word for file in files for word in ("-r", str(file))]
        session.install("--quiet", "--require-hashes", "--only-binary", ":all:", *locked)
        if not asked(session, "no_install"):
            stamp.write_text("\n".join(sorted(wanted)))


def unlocked(session: nox.Session) -> bool:
    """Whether this session, and what it builds, tries newer packages than the locked ones."""
    if "--unlocked" in session.posargs:
        session.posargs.remove("--unlocked")
        os.environ["MULTINODE_UNLOCKED"] = "1"
    return os.environ.get("MULTINODE_UNLOCKED", "").lower() in ("1", "true", "yes", "on")


def requirements(*sides: str) -> list[str]:
    """What setup.cfg lists for these sides."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg")
    lists = {"node": config["options"]["install_requires"], **config["options.extras_require"]}
    lines = [line for side in sides for line in lists[side].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def asked(session: nox.Session, option: str) -> bool:
    """Whether nox was given this option of its own, which a session cannot read otherwise."""
    return bool(getattr(session._runner.global_config, option))


@contextlib.contextmanager
def environment(what: str) -> Iterator[None]:
    """End with exit code 3 when it fails; nox would make 1 of it, as if the product had failed."""
    try:
        yield
    except (CommandFailed, OSError) as error:
        print(f"error: what this session needs {what}: {error}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def run_module(session: nox.Session, module: str) -> None:
    """Become one of our modules, with its exit code and its way with Ctrl-C and SIGTERM.

    As its parent nox would turn every exit code into 1, and kill a run half a second after
    Ctrl-C, before it has stopped its fleet and collected its logs.
    """
    if asked(session, "install_only"):
        return
    python = Path(session.bin) / "python"
    session.log(f"python -m {module} {shlex.join(session.posargs)}".rstrip())
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):  # its reader went away, which is no reason to stop
            stream.flush()
    os.environ["PATH"] = os.pathsep.join([session.bin, os.environ.get("PATH", "")])
    with environment("cannot be started"):
        os.execv(python, [str(python), "-m", module, *session.posargs])


def backend_extras(arguments: list[str]) -> list[str]:
    """What the chosen backend needs besides; nothing for one machine."""
    flags = [argument.partition("=")[0] for argument in arguments]
    return [name for name in ("k8s",) if name in arguments or f"--{name}" in flags]


def unsaid(arguments: list[str]) -> list[str]:
    """The cluster of the kubeconfig, where a run may go when nothing says where."""
    flags = {argument.partition("=")[0] for argument in arguments}
    known = [os.environ.get("KUBECONFIG"), os.environ.get("KUBECONFIG_B64")]
    found = any(known) or (Path.home() / ".kube" / "config").is_file()
    return ["k8s"] if found and not flags & {"--on", "--rehearse", "--hosts"} else []


def replayed(arguments: list[str]) -> list[str]:
    """Where the run that is to be replayed ran; of one that cannot be read the module complains."""
    for argument in arguments:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            plan = json.loads((Path(argument) / "plan.json").read_text(encoding="utf-8"))
            return [str(plan["cluster"]["backend"])]
    return []


if __name__ == "__main__":
    nox.main()
