"""Deleting what a run made, and looking that it is gone.

Enters: a run's names, or everything that is labelled as ours. Leaves: what is
left. Touches the API: deletes only what carries the run's label, or has a name
that only this run gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from k8s.api.client import Api, ApiError, path
from k8s.manifest import LWS_NAME_LABEL, RUN_LABEL, Names

#: Looked at in this order; the first two are made by controllers.
KINDS = ("pods", "statefulsets", "services", "configmaps")
#: After an outage of the API server kubelets, controllers and DNS need so long to catch up.
AFTERMATH = 180.0


def delete(api: Api, names: Names, parts: int) -> list[str]:
    """Ask for the deletion of everything; returns the names that could not be asked for."""
    space, base = names.namespace, names.base
    failed = []
    wanted = [("leaderworkersets", base, "Foreground"), ("services", names.service, "Background")]
    wanted += [("secrets", base, "Background"), ("configmaps", base, "Background")]
    wanted += [("configmaps", names.bundle(i), "Background") for i in range(parts)]
    for plural, name, propagation in wanted:
        try:
            api.delete(path(space, plural, name), propagation)
        except ApiError as error:
            failed.append(f"{plural}/{name}: {error}")
    return failed


def left(api: Api, names: Names, run: str) -> list[str]:
    """What of a run is still there."""
    found = []
    for plural in KINDS:
        own = plural in ("services", "configmaps")
        label = f"{RUN_LABEL}={run}" if own else f"{LWS_NAME_LABEL}={names.base}"
        for item in api.items(path(names.namespace, plural), {"labelSelector": label}):
            found.append(f"{plural}/{item['metadata']['name']}")
    return found


def remove(
    api: Api,
    names: Names,
    run: str,
    parts: int,
    seconds: float,
    over: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Delete, and look until all is gone; returns the names left after ``seconds``, and why.

    It waits longer where the API server was away a short while ago.
    """
    deadline = time.monotonic() + seconds
    failed = delete(api, names, parts)
    delay = 0.1
    while True:
        if failed:
            failed = delete(api, names, parts)
        try:
            remaining = left(api, names, run)
        except ApiError as error:
            remaining = [f"unknown: {error}"]
        if not remaining and not failed:
            return []
        patience = AFTERMATH if api.late(AFTERMATH) else 0.0
        if time.monotonic() > deadline + patience or over():
            return [*failed, *remaining]
        time.sleep(delay)
        delay = min(delay * 1.5, 1.0)
