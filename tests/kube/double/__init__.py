"""A Kubernetes of our own for tests: API server, LWS controller and kubelet in one process, built
from recordings.

``with KubeDouble(tmp_path) as kube:`` serves an API on a loopback port; ``kube.kubeconfig(path)``
writes what clients need. Pods run as real local processes. See ``docs`` in README.md beside this
file.
"""

from .cluster import KubeDouble
from .faults import Fault
from .kubelet import Image
from .timing import Timing

__all__ = ["Fault", "Image", "KubeDouble", "Timing"]
