"""What expired or cancelled runs left on a cluster.

Enters: a namespace. Leaves: nothing of runs whose time is over. Touches the
API: deletes what carries our labels, never anything else, never a run whose
time is not over. A pod that is deleted, never ran, and that its kubelet does not let go
of, such as in a pull that hangs, is taken out of the API by force; one that ran never is.

    python -m k8s.janitor [--older-than 6h] [--namespace NS] [--dry-run]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field

from k8s import cleanup, manifest
from k8s.api import client
from k8s.api.client import Api, ApiError
from k8s.triage import epoch
from steps.core import door, foreign
from steps.core.case.case import seconds
from steps.core.errors import InfraError, UsageError
from steps.core.plan.profile import find_profile, load_profile

_SELECTOR = ",".join(f"{key}={value}" for key, value in manifest.MANAGED.items())
#: A large grace period and a node that does not answer take a while.
PATIENCE = 120.0


@dataclass
class Leftover:
    """What is there of one run."""

    run: str
    name: str = ""
    case: str = ""
    made: float = 0.0
    expires: float = 0.0
    objects: list[str] = field(default_factory=list)

    @property
    def parts(self) -> int:
        """ConfigMaps of the bundle."""
        return sum("-bundle-" in name for name in self.objects)


def find(api: Api, namespace: str) -> list[Leftover]:
    """Every run of which something is there, the oldest first.

    Raises:
        ApiError: the API refuses.
    """
    found: dict[str, Leftover] = {}
    for plural in ("leaderworkersets", "configmaps", "services", "pods"):
        for item in api.items(client.path(namespace, plural), {"labelSelector": _SELECTOR}):
            meta = item["metadata"]
            labels = meta["labels"]
            run = labels.get(manifest.RUN_LABEL)
            if not run:
                continue
            entry = found.setdefault(run, Leftover(run))
            entry.case = labels.get(manifest.CASE_LABEL, "")
            expires = labels.get(manifest.EXPIRES_LABEL, "")
            entry.expires = float(expires) if expires.isdigit() else 0.0
            made = epoch(meta.get("creationTimestamp"))
            entry.made = min(entry.made or made, made)
            entry.objects.append(f"{plural}/{meta['name']}")
            made_by = labels.get(manifest.LWS_NAME_LABEL, "")
            entry.name = entry.name or made_by or _base(plural, meta["name"])
    return sorted(found.values(), key=lambda entry: entry.made)


def _base(plural: str, name: str) -> str:
    """The run's name, from the name of one of its objects."""
    if plural == "services":
        return name.removesuffix("-api")
    return name.partition("-bundle-")[0] if plural == "configmaps" else name


def due(entry: Leftover, older_than: float | None, now: float) -> bool:
    """Whether a run's time is over: the janitor's limit, else the run's own."""
    if older_than is not None:
        return entry.made < now - older_than
    return entry.expires < now


def run(api: Api, namespace: str, older_than: float | None, dry: bool) -> int:
    """Remove what is due; 3 when something would not go."""
    code = 0
    now = time.time()
    entries = find(api, namespace)
    for entry in entries:
        age = f"{(now - entry.made) / 3600:.1f} h old"
        size = f"{len(entry.objects)} objects"
        text = foreign.line(f"{entry.name} ({entry.case}, run {entry.run}, {age}, {size})")
        if not due(entry, older_than, now):
            hours = (entry.expires - now) / 3600
            print(f"kept     {text}: its time ends in {hours:.1f} h", flush=True)
            continue
        if dry:
            print(f"would go {text}", flush=True)
            continue
        names = manifest.Names(entry.name, namespace)
        parts = max(entry.parts, 1)
        rest = cleanup.remove(api, names, entry.run, parts, PATIENCE, force=True)
        print(f"{'LEFT    ' if rest else 'removed '} {text}", flush=True)
        for line in rest:
            print(f"    {foreign.line(line)}", file=sys.stderr)
            code = 3
    if not entries:
        print(f"nothing of ours is in the namespace {namespace}")
    return code


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--older-than", default="", metavar="6h", help="default: its own time")
    parser.add_argument("--namespace", default="", help="default: the profile's, the kubeconfig's")
    parser.add_argument("--profile", default="", help="cluster profile in configs/clusters/")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def work(arguments: argparse.Namespace) -> int:
    """Connect to the cluster, and remove what is over."""
    limit = None
    if arguments.older_than:
        try:
            limit = seconds(arguments.older_than)
        except ValueError as error:
            raise UsageError(f"--older-than: {error}") from None
    namespace = arguments.namespace
    if arguments.profile and not namespace:
        namespace = load_profile(find_profile(arguments.profile)).namespace
    api = client.connect()
    try:
        return run(api, namespace or api.namespace, limit, arguments.dry_run)
    except ApiError as error:
        hint = "docs/kubernetes.md lists the rights it needs."
        raise InfraError(f"the API refuses: {error}", hint) from None


main = door.Verb("janitor", __doc__, _options, work)


if __name__ == "__main__":
    sys.exit(main())
