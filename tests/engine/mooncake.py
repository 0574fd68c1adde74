"""``mooncake_master --port P``: accepts connections, as a pool's master does."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

from tests.engine import option, words


def main(argv: Sequence[str]) -> int:
    """The command line."""
    knobs = words()
    if "master_code" in knobs:
        print("E rpc_server: cannot start", flush=True)
        return int(knobs["master_code"])
    time.sleep(float(knobs.get("master", "0")))
    with socket.create_server(("0.0.0.0", int(option(argv, "--port")))) as door:
        print("I Master service started", flush=True)
        while True:
            door.accept()[0].close()
