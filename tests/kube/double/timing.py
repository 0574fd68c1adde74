"""How long the cluster takes for each thing, in seconds. A value; tests shorten or stretch what
they need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Delays of the double; each names what the recordings showed on a real, idle, one-node
    cluster.

    Attributes:
        sync: a controller's reaction to a change (recorded 0.01 to 0.2).
        collect: one hop of the garbage collector (recorded 0.05 to 0.2).
        schedule: pod created to pod bound (recorded 0.02 to 0.05).
        kubelet: pod bound to the kubelet's first status (recorded 0.05 to 0.4).
        sandbox: first status to sandbox ready, and sandbox ready to container started (recorded
            0.2 to 0.8 together).
        dns: pod IP published to its name resolving (CoreDNS; a first look-up of a fresh name can
            fail).
        stop: last exit of a terminating pod to the status that shows it (recorded 0.1 to 0.5).
        restart: first exit to second start (recorded 0.15 to 0.5).
        backoff: the first CrashLoopBackOff; doubles up to ``backoff_limit`` (recorded 10, 20, 40).
        remove: last container gone to pod object gone (recorded 0.2 to 1.2).
        pull: an image that is not present but can be pulled, and the time until a failing pull
            fails (recorded 10 for a registry whose name does not resolve).
        pull_backoff: ErrImagePull to ImagePullBackOff shown in the pod (not seen within 13 s in
            the recording).
        bookmark: between two bookmarks (recorded 60).
        cache: how long a kubelet cannot mount a pod's config maps since its cache has not synced
            (seen on the real one, rarely, as one event that passed by itself).
    """

    sync: float = 0.02
    collect: float = 0.08
    schedule: float = 0.02
    kubelet: float = 0.05
    sandbox: float = 0.05
    dns: float = 0.2
    stop: float = 0.1
    restart: float = 0.15
    backoff: float = 10.0
    backoff_limit: float = 300.0
    remove: float = 0.2
    pull: float = 0.3
    pull_backoff: float = 15.0
    bookmark: float = 60.0
    cache: float = 0.0


@dataclass
class Lag:
    """Until when, by the loop's clock, who watches the API has not caught up with it.

    After an outage DNS and kubelets come back later than the server: names resolve late, and
    deleted pods go late (seen on the real one: up to a minute).
    """

    until: float = 0.0

    def left(self, now: float) -> float:
        """Seconds of it that are left."""
        return max(0.0, self.until - now)
