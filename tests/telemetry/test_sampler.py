"""The sampler: what it leaves, and what cannot delay it."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from steps.core.node import http, sampler
from steps.core.plan.plan import Access
from steps.core.record import telemetry
from steps.core.system.tail import Growth
from steps.core.vllm import metrics
from steps.core.vllm.logs import OUR_QUESTIONS
from tests.telemetry.fakes import endpoint, page

HEAD = {"run": "r", "node": 0}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "EVERY", 0.05)
    monkeypatch.setattr(sampler, "FLUSH_EVERY", 0.1)


def source(name: str, url: str, key: str = "", patience: float = 5.0) -> sampler.Source:
    found = sampler.endpoint(name, Access(url, key), patience=patience)
    found.every = 0.05
    return found


def test_values_of_an_engine_that_wants_a_key_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with endpoint(lambda turn: page(turn, ranks=2), key="k") as url:
        made = sampler.Sampler([source("server", url, "k")], path, HEAD)
        made.start()
        time.sleep(0.5)
        made.close()
    track = telemetry.read(path)["server"]
    assert track.engines() == ["0", "1"]
    assert len(track.seen) >= 4
    times, values = track.series["prompt_tokens|1|"]
    assert list(values) == [1800.0 * turn for turn in range(1, len(values) + 1)]
    assert abs(times[0] - time.time()) < 5
    assert len(track.series["running|0|"][0]) == 1, "what stays the same is written once"
    assert track.series["accepted|0|1"][1][0] == 25
    assert "queue_bucket|0|+Inf" in track.series


def test_slow_dead_and_silent_endpoints_leave_gaps_and_delay_nothing(tmp_path: Path) -> None:
    over = threading.Event()

    def slow(turn: int) -> str:
        over.wait(10 if turn > 2 else 0)
        return page(turn)

    with endpoint(page) as good, endpoint(slow) as stuck:
        every = [source("good", good), source("stuck", stuck)]
        every += [source("dead", "http://127.0.0.1:9/metrics"), source("closed", good, "wrong")]
        made = sampler.Sampler(every, tmp_path / "t", HEAD)
        made.start()
        time.sleep(0.8)
        began = time.monotonic()
        made.close()
        took = time.monotonic() - began
        over.set()
    tracks = telemetry.read(tmp_path / "t")
    assert len(tracks["good"].seen) >= 5
    assert len(tracks["stuck"].seen) <= 2
    assert "dead" not in tracks
    assert took < 1.0


def test_an_endpoint_that_trickles_is_given_up(tmp_path: Path) -> None:
    del tmp_path
    import socket

    with socket.create_server(("127.0.0.1", 0)) as door:

        def trickle() -> None:
            peer = door.accept()[0]
            with peer, contextlib.suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                for _ in range(100):
                    peer.sendall(b"a")
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        line = http.Line(Access(f"http://127.0.0.1:{door.getsockname()[1]}/metrics"))
        began = time.monotonic()
        reply = line.get(0.3, 1 << 20)
        assert (reply.status, reply.error) == (0, "no answer within 0.3 s")
        assert time.monotonic() - began < 2


def test_an_engine_that_comes_anew_and_one_that_grows_series(tmp_path: Path) -> None:
    def answer(turn: int) -> str:
        return page(turn if turn < 4 else turn - 3, ranks=1 if turn < 6 else 2)

    with endpoint(answer) as url:
        made = sampler.Sampler([source("server", url)], tmp_path / "t", HEAD)
        made.start()
        time.sleep(0.9)
        made.close()
    track = telemetry.read(tmp_path / "t")["server"]
    _, values = track.series["prompt_tokens|0|"]
    assert list(values)[:6] == [900, 1800, 2700, 900, 1800, 2700]
    assert track.grown("prompt_tokens|0|", (0, 2e12)) == 2700 + values[-1]
    assert track.grown("prompt_tokens|1|", (0, 2e12)) == track.series["prompt_tokens|1|"][1][-1]


def test_a_killed_node_leaves_a_beginning_that_can_be_read(tmp_path: Path) -> None:
    with endpoint(page) as url:
        made = sampler.Sampler([source("server", url)], tmp_path / "t", HEAD)
        made.start()
        time.sleep(0.6)
        (tmp_path / "torn").write_bytes((tmp_path / "t").read_bytes())  # as a kill leaves it
        made.close()
    torn, whole = (telemetry.read(tmp_path / name)["server"] for name in ("torn", "t"))
    assert 2 <= len(torn.seen) <= len(whole.seen)
    cut = (tmp_path / "t").read_bytes()[:-20]
    (tmp_path / "cut").write_bytes(cut)
    assert telemetry.read(tmp_path / "cut")["server"].seen


def test_a_second_go_of_a_node_is_added(tmp_path: Path) -> None:
    for _ in range(2):
        with endpoint(page) as url:
            made = sampler.Sampler([source("server", url)], tmp_path / "t", HEAD)
            made.start()
            time.sleep(0.2)
            made.close()
    (_, values) = telemetry.read(tmp_path / "t")["server"].series["prompt_tokens|0|"]
    assert list(values).count(900) == 2


def test_the_file_keeps_its_room(tmp_path: Path) -> None:
    import random

    keys = [f"n{at}||" for at in range(200)]
    noise = sampler.Source("s", lambda: (keys, [str(random.random()) for _ in keys]), 0.01)
    made = sampler.Sampler([noise], tmp_path / "t", HEAD, room=40_000)
    made.start()
    time.sleep(1.5)
    made.close()
    assert (tmp_path / "t").stat().st_size < 60_000
    seen = telemetry.read(tmp_path / "t")["s"].seen
    assert seen[-1] - seen[0] > 0.5, "looks become fewer, they do not end"


def test_a_full_disk_ends_nothing_but_the_file(tmp_path: Path) -> None:
    made = sampler.Sampler([], tmp_path / "absent" / "t", HEAD)
    made.start()
    made.close()


def test_a_reader_takes_what_it_knows_and_nothing_odd() -> None:
    reader = metrics.Reader()
    text = 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="a b"} 9\n'
    text += 'other 7\nvllm:unknown{engine="0"} 1\nvllm:kv_cache_usage_perc 0.5\n'
    assert reader.read(text) == (True, ["3", "0.5"])
    assert [*reader.keys] == ["running|0|", "kv_usage|0|"]
    assert reader.read(text.replace(" 3", " 4")) == (False, ["4", "0.5"])
    assert metrics.Reader(engine=False).read('a_total 3\nb{c="d"} 4\n# x\n')[1] == ["3"]
    more = 'vllm:num_preemptions_total{engine="0"} 7\n' + text
    assert reader.read(more) == (True, ["7", "3", "0.5"])
    assert [*reader.keys] == ["preemptions|0|", "running|0|", "kv_usage|0|"]


ASCEND = """
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.4        40                0    / 0             |
| 0                         | 0000:C1:00.0  | 77          0    / 0          3370 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 93.4        40                0    / 0             |
| 0                         | 0000:C2:00.0  | 5           0    / 0          60000/ 65536         |
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 0       0                 | 4711          | python                   | 3000                    |
"""


def test_devices_are_read_from_their_tools() -> None:
    found = sampler.npus(ASCEND)
    assert found == {
        "busy|0|": "77", "used|0|": "3370", "whole|0|": "65536",
        "busy|1|": "5", "used|1|": "60000", "whole|1|": "65536",
    }  # fmt: skip
    assert sampler.gpus("0, 12, 100, 800\nodd\n") == {
        "busy|0|": "12", "used|0|": "100", "whole|0|": "800",
    }  # fmt: skip


def test_a_tool_that_hangs_costs_a_gap_and_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    hung = sampler._tool("npu-smi", (sys.executable, "-c", code), sampler.npus)
    alive = sampler.Source("machine", sampler._machine, 0.05)
    made = sampler.Sampler([hung, alive], tmp_path / "t", HEAD)
    made.start()
    until = time.monotonic() + 10
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 1
    assert set(telemetry.read(tmp_path / "t")) == {"machine"}
    time.sleep(0.3)
    stat = Path(f"/proc/{path.read_text()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_lines_that_our_own_questions_leave_are_no_work(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"INFO loaded\n")
    growth = Growth(log, OUR_QUESTIONS)
    before = growth.size()
    with log.open("ab") as out:
        out.write(b'INFO:     127.0.0.1:1 - "GET /metrics HTTP/1.1" 200 OK\n')
        out.write(b'(APIServer pid=1) INFO: 1.1.1.1:1 - "GET /health HTTP/1.1" 503 -\n')
    assert growth.size() == before
    with log.open("ab") as out:
        out.write(b'INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK\n')
    assert growth.size() > before
    assert re.fullmatch(r"\d+", str(growth.size()))


def test_an_archive_that_is_none_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert telemetry.read(path) == {}
    path.write_bytes(b"nonsense")
    assert telemetry.read(path) == {}
    packer = zlib.compressobj(wbits=31)
    lines = b'{"schema":1,"started":1}\nodd\n{"s":"a","keys":["x||"]}\n{"t":1,"v":{"b":[0,1]}}\n'
    lines += b'{"t":1,"v":{"a":[7,1]}}\n{"t":2,"v":{"a":[0,1e999]}}\n{"t":3,"v":{"a":[0,5]}}\n'
    path.write_bytes(packer.compress(lines) + packer.flush())
    assert list(telemetry.read(path)["a"].series["x||"][1]) == [5]
    assert telemetry.read(path, most=10) == {}


def test_a_fleet_that_loads_is_looked_at_seldom_until_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "SELDOM", 30.0)
    looks: list[float] = []
    enough = threading.Event()

    def ask() -> sampler.Found:
        looks.append(time.monotonic())
        if len(looks) > 3:
            enough.set()
        return ("running||",), (str(len(looks)),)

    made = sampler.Sampler([sampler.Source("server", ask, 0.05)], tmp_path / "t", HEAD, seldom=True)
    made.start(patience=20)
    assert not enough.wait(0.5)
    assert len(looks) == 1
    made.quicken()
    assert enough.wait(20)
    made.close()
    assert len(telemetry.read(tmp_path / "t")["server"].seen) >= 4
