"""What invoke offers of this room. Imports nothing heavy before it is called."""

from __future__ import annotations

from invoke import Context, task
from invoke.exceptions import Exit as Leave

from steps.tasks import call

_K8S = {
    "name": "the LeaderWorkerSet, for a run on k8s",
    "on": "where a run by NAME is; k8s is the only place",
    "namespace": "default: the kubeconfig's",
}


def _only_k8s(on: str) -> None:
    if on != "k8s":
        raise Leave(f"--on: found {on!r}, expected k8s", code=2)


@task(help=_K8S)
def follow(c: Context, name: str, on: str = "k8s", namespace: str = "") -> None:
    """Print the log of a run that was applied by hand, to its verdict and its exit code."""
    _only_k8s(on)
    call("k8s.follow", {"name": name, "namespace": namespace})


@task(
    help={
        **_K8S,
        "from_": "a worker's run directory that was copied here (may be repeated)",
        "run_dir": "default: runs/NAME; with --from: runs/latest",
    },
    iterable=["from_"],
)
def fetch(
    c: Context,
    name: str = "",
    from_: list[str] | None = None,
    on: str = "k8s",
    namespace: str = "",
    run_dir: str = "",
) -> None:
    """Fetch the files of a run that was applied by hand, or of workers that were."""
    if from_:
        call("steps.byhand.fetch", {"from": from_, "run_dir": run_dir})
        return
    _only_k8s(on)
    if not name:
        raise Leave("fetch: give --name NAME of a run on k8s, or --from DIR of a worker", code=2)
    call("k8s.fetch", {"name": name, "namespace": namespace, "run_dir": run_dir})
