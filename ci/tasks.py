"""Invoke tasks of the runner: what looks at many machines from one place.

Enters: options. Leaves: the exit code of what they run. Touches: what it touches.
"""

from __future__ import annotations

from invoke import Context, task

from steps.tasks import call


@task(
    help={
        "hosts": "addresses, or a hosts file; neither this nor a case: this machine",
        "case": "a case with cluster_hosts",
        "only": "NAME of a case, in a file of several",
        "directory": "where runs will be; default: as the hosts file says, else /tmp",
        "ports": "ports that must be free, comma separated",
        "model": "a model's directory that must be there",
        "format": "text or json",
    }
)
def hosts_check(
    c: Context,
    hosts: str = "",
    case: str = "",
    only: str = "",
    directory: str = "",
    ports: str = "",
    model: str = "",
    format: str = "text",
) -> None:
    """Say what every host has for a run, what is wrong, and where hosts differ."""
    call("ci.backends.hosts.check", {key: value for key, value in locals().items() if key != "c"})


@task(
    help={
        "from": "directory of an earlier run; default runs/latest",
        "run_dir": "of the new run; default: beside the earlier one",
        "verbose": "show every event",
    }
)
def replay(
    c: Context, from_: str = "runs/latest", run_dir: str = "", verbose: bool = False
) -> None:
    """Run the case of an earlier run again, with the same plan inputs."""
    call("ci.replay", {"run_dir": run_dir, "verbose": verbose}, from_)


@task(
    help={
        "for": "one backend, such as k8s; exit code 3 when it cannot be used",
        "format": "text or json",
    }
)
def doctor(c: Context, for_: str = "", format: str = "text") -> None:
    """Say what this machine lacks for each backend, and what to do."""
    call("ci.doctor", {"for": for_, "format": format})


@task(
    iterable=["slo"],
    help={
        "case": "a case: a path, or a name in configs/",
        "only": "NAME of a case, in a file of several",
        "slo": "a limit, such as 'tpot_p99_ms<=50'; may be given several times",
        "maximise": "batch_size (default), request_rate or output_throughput",
        "within": "the range of loads, such as 1,256",
        "on": "where to run it",
        "rehearse": "stand-ins play the engines, on this machine",
        "bench": "benchmark driver",
        "dir": "default: runs/size-<id>",
    },
)
def size(
    c: Context,
    case: str,
    slo: list[str],
    only: str = "",
    maximise: str = "",
    within: str = "",
    on: str = "",
    rehearse: bool = False,
    bench: str = "",
    dir: str = "",
) -> None:
    """Find the largest load that holds limits."""
    options = {key: value for key, value in locals().items() if key not in ("c", "case")}
    call("ci.size", options, case)
