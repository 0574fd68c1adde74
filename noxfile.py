# /// script
# dependencies = ["nox>=2024.4.15"]
# ///
"""What people and CI type; each session is one use of the harness."""

from __future__ import annotations

import configparser
import contextlib
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

HERE = Path(__file__).parent


@nox.session
def multinode(session: nox.Session) -> None:
    """Run one case to its verdict: CASE [--rehearse | --on k8s|hosts|local]."""
    install(session, "node", "runner", "report", *backend_extras(session.posargs))
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
def replay(session: nox.Session) -> None:
    """Run the case of an earlier run again, with the same plan inputs: RUN [OPTIONS]."""
    install(session, "node", "runner", "report", *backend_extras(session.posargs))
    run_module(session, "ci.replay")


@nox.session
def compare(session: nox.Session) -> None:
    """Say whether a variant of a case is worse: CASE --b-set PATH=VALUE [--budget MINUTES]."""
    install(session, "node", "runner", "report", *backend_extras(session.posargs))
    run_module(session, "ci.compare.compare")


@nox.session
def doctor(session: nox.Session) -> None:
    """Say what this machine lacks for each backend: [--for BACKEND]."""
    install(session, "node", "runner", *backend_extras(session.posargs))
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
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


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
    session.run("zizmor", "--offline", "--no-progress", *files)
    session.run("python", "-m", "ci.nightly.matrix")
    session.run("python", "-m", "ci.nightly.known")


# Helpers


def install(session: nox.Session, *sides: str) -> None:
    """Install the dependencies of the named sides, as setup.cfg lists them."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg")
    lists = {"node": config["options"]["install_requires"], **config["options.extras_require"]}
    wanted = [line for side in sides for line in lists[side].splitlines()]
    requirements = [line for line in wanted if line and not line.startswith("#")]
    with environment("cannot be installed"):
        session.install("--quiet", *requirements)


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


if __name__ == "__main__":
    nox.main()
