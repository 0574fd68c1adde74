"""A slow link, as a ProxyCommand: standard input and output to HOST PORT, at so many bits/s.

Usage: slow.py HOST PORT BITS SECONDS. Every byte arrives SECONDS late, each way.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import time


def carry(source: int, target: int, rate: float, delay: float) -> None:
    """Pass bytes on until one side ends."""
    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(64)

    def deliver() -> None:
        while True:
            due, data = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                break
            view = memoryview(data)
            with contextlib.suppress(OSError):
                while view:
                    view = view[os.write(target, view) :]
        os._exit(0)

    threading.Thread(target=deliver, daemon=True).start()
    free = 0.0
    while True:
        try:
            data = os.read(source, 2048)
        except OSError:
            data = b""
        free = max(free, time.monotonic()) + len(data) / rate
        waiting.put((free + delay, data))
        if not data:
            return


def main() -> None:
    """Both ways at once."""
    host, port, bits, delay = sys.argv[1:]
    sock = socket.create_connection((host, int(port)))
    way = (float(bits) / 8, float(delay))
    up = threading.Thread(target=carry, args=(0, sock.fileno(), *way))
    down = threading.Thread(target=carry, args=(sock.fileno(), 1, *way))
    up.start()
    down.start()
    up.join()
    down.join()
    time.sleep(2 * float(delay))


if __name__ == "__main__":
    main()
