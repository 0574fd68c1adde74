"""``python -m tests.kube.double``: a cluster to play with, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path

from . import KubeDouble, Timing


def main() -> int:
    """Serve until interrupted; everything is stopped and removed at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube.double", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="listen here (default: any free port)")
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        default=Path("kubeconfig"),
        help="write it here (default: %(default)s)",
    )
    parser.add_argument(
        "--namespace", default="default", help="the kubeconfig's namespace (default: %(default)s)"
    )
    parser.add_argument(
        "--nodes", type=int, default=1, help="how many nodes (default: %(default)s)"
    )
    parser.add_argument(
        "--npus",
        type=int,
        default=16,
        help="huawei.com/ascend-1980 of each node (default: %(default)s)",
    )
    parser.add_argument(
        "--backoff", type=float, default=10.0, help="first CrashLoopBackOff, seconds (default: 10)"
    )
    parser.add_argument("--tls", action="store_true", help="serve https")
    options = parser.parse_args()
    nodes = {
        f"node-{chr(97 + i)}": {"huawei.com/ascend-1980": str(options.npus)}
        for i in range(options.nodes)
    }
    with tempfile.TemporaryDirectory(prefix="kube-double-") as directory:
        kube = KubeDouble(
            Path(directory),
            namespace=options.namespace,
            nodes=nodes,
            timing=Timing(backoff=options.backoff),
            tls=options.tls,
            port=options.port,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with kube:
            kube.kubeconfig(options.kubeconfig)
            print(
                f"serving {kube.url}, pods run in {kube.mode}; "
                f"KUBECONFIG={options.kubeconfig.resolve()}",
                flush=True,
            )
            try:
                signal.pause()
            except KeyboardInterrupt:
                print("stopping", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
