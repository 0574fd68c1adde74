"""The keeper alone, over its socket: leases, positions, words."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.core.node import keeper
from steps.core.plan import clusters
from tests.core import strays
from tests.core.waiting import eventually

NODE = """
import sys, time, os
print('{"n": 0}', flush=True)
print("a warning on stderr, Authorization: Bearer abcdefgh12345", file=sys.stderr, flush=True)
token = open(sys.argv[sys.argv.index("--token-file") + 1]).read()
print('{"token": %d}' % len(token), flush=True)
for line in sys.stdin:
    if line.startswith("["):
        import json, subprocess
        for words in json.loads(line):
            subprocess.Popen(words, start_new_session=True)
        print('{"words": 1}', flush=True)
        continue
    print('{"word": "%s"}' % line.strip(), flush=True)
sys.exit(7)
"""


class Talk:
    """A runner's end of the keeper's socket."""

    def __init__(self, place: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(place / "keeper.sock"))
        self.file = self.sock.makefile("rw", encoding="utf-8")
        self.events = ""
        self.at = 0

    def send(self, **message: Any) -> None:
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()

    def until(self, key: str) -> Any:
        """The next message that has ``key``."""
        for line in self.file:
            message = json.loads(line)
            if "events" in message:
                self.events += message["events"]
                self.at = message["at"]
            if key in message:
                return message[key]
        raise AssertionError(f"no {key}")

    def until_event(self, text: str) -> None:
        """Wait for an event."""
        while text not in self.events:
            self.until("events")

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A place with a keeper whose lease is two seconds; its node program echoes words."""
    place = tmp_path / "multinode-x" / "host-0"
    place.mkdir(parents=True)
    (place.parent / "bundle").symlink_to(clusters.ROOT)
    config = {"place": str(place), "index": 0, "token": "t" * 20, "lease": 2, "argv": ["-c", NODE]}
    keeper = subprocess.Popen(
        [sys.executable, "-m", "steps.core.node.keeper", "run"],
        cwd=clusters.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "MULTINODE_PLACE": str(place)},
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdin.write(json.dumps(config).encode() + b"\n")
    keeper.stdin.flush()
    assert keeper.stdout.readline() == b"ready\n"
    yield place
    with contextlib.suppress(OSError):
        os.killpg(keeper.pid, signal.SIGKILL)
    keeper.wait()


def follow(events: int = 0, **logs: int) -> dict[str, Any]:
    return {"follow": {"events": events, "logs": logs, "plan": False}}


def test_words_events_and_the_end(place: Path) -> None:
    talk = Talk(place)
    talk.send(go=True, **follow())
    talk.until_event('{"token": 20}')
    talk.send(say="stop now")
    talk.until_event('{"word": "stop now"}')
    talk.send(bye=True)
    assert talk.until("ended") == {"code": -9, "record": False}
    deadline = time.monotonic() + 5
    while (place / "keeper.sock").exists():
        assert time.monotonic() < deadline
    assert not (place / "ended").exists()


def test_a_second_connection_goes_on_where_the_first_was(place: Path) -> None:
    first = Talk(place)
    first.send(go=True, **follow())
    first.until_event('{"token": 20}')
    at, seen = first.at, first.events
    first.close()
    second = Talk(place)
    second.send(say="again", **follow(at))
    second.until_event("again")
    assert second.events == '{"word": "again"}\n'
    third = Talk(place)
    third.send(**follow(0))
    third.until_event("again")
    assert third.events == seen + second.events


def test_logs_are_followed_without_secrets(place: Path) -> None:
    talk = Talk(place)
    talk.send(go=True, **follow())
    while talk.until("log") != "node.log":
        pass
    again = Talk(place)
    again.send(**follow())
    text = again.until("text")
    assert "a warning on stderr" in text
    assert "abcdefgh12345" not in text


def test_the_lease_ends_the_node_program_and_leaves_the_results(place: Path) -> None:
    talk = Talk(place)
    talk.send(go=True, **follow())
    talk.until_event('{"token": 20}')
    for _ in range(3):
        time.sleep(1)
        talk.send(beat=1)
        assert talk.until("beat") == 1
    ended = talk.until("ended")
    assert ended["code"] == 7
    deadline = time.monotonic() + 5
    while not (place / "ended").exists():
        assert time.monotonic() < deadline
    assert (place / "run" / "node-0" / "node.log").is_file()


def test_results_that_nobody_fetched_for_a_week_go(tmp_path: Path) -> None:
    old, new = (tmp_path / f"multinode-{name}" / "host-0" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir(parents=True)
        (path.parent / "bundle").mkdir()
        (path / "ended").touch()
    long_ago = time.time() - 8 * 86400
    os.utime(old / "ended", (long_ago, long_ago))
    keeper.prune(tmp_path)
    assert not old.parent.exists()
    assert new.exists()


def test_clean_says_what_was_left(place: Path) -> None:
    stray = subprocess.Popen(
        ["sleep", "60"], env={**os.environ, "MULTINODE_PLACE": str(place)}, start_new_session=True
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "steps.core.node.keeper", "clean", str(place)],
            cwd=clusters.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        assert found == {"left": [f"sleep (pid {stray.pid})"], "removed": True}
        assert stray.wait(5) == -9
        assert not place.exists()
    finally:
        stray.kill()
        stray.wait()


def test_what_a_killed_node_program_and_its_guard_left_is_ended_and_named(place: Path) -> None:
    roster = place.parent / "roster"
    talk = Talk(place)
    talk.send(go=True, **follow())
    talk.until_event('{"token": 20}')
    talk.send(say=json.dumps([strays.argv(kind, roster) for kind in strays.KINDS]))
    talk.until_event('{"words": 1}')
    eventually(lambda: len(strays.listed(roster)) > 60)
    talk.close()
    done = subprocess.run(
        [sys.executable, "-m", "steps.core.node.keeper", "clean", str(place)],
        cwd=clusters.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert strays.alive(roster) == []
    left = json.loads(done.stdout)["left"]
    assert any(name.startswith("VLLM::EngineCor (pid ") for name in left), done.stdout
