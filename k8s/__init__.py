"""The Kubernetes backend: a case as a LeaderWorkerSet. Runs on the runner, but for ``pod.py``."""
