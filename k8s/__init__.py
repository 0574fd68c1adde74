"""The Kubernetes backend: a case as a LeaderWorkerSet. Runs on the runner, but for ``pod.py``."""

import steps  # noqa: F401  (it prepares a start with `python -m`)
