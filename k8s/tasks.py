"""What invoke offers of this room. Imports nothing heavy before it is called."""

from __future__ import annotations

from invoke import Context, task
from invoke.exceptions import Exit as Leave

from steps.tasks import call


@task(
    help={
        "name": "the LeaderWorkerSet, for a run on k8s",
        "from_": "a worker's run directory that was copied here (may be repeated)",
        "on": "where a run by NAME is; k8s is the only place",
        "namespace": "default: the kubeconfig's",
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
    if on != "k8s":
        raise Leave(f"--on: found {on!r}, expected k8s", code=2)
    if not name:
        raise Leave("fetch: give --name NAME of a run on k8s, or --from DIR of a worker", code=2)
    call("k8s.fetch", {"name": name, "namespace": namespace, "run_dir": run_dir})
