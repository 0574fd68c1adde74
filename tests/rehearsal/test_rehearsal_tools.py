"""The stand-ins of npu-smi and the KV pools."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from standins import ROOT, Yard

from rehearsal import npu_smi
from rehearsal.handoff import memcache, mooncake


def smi(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REHEARSAL_DEVICES": "4", "REHEARSAL_NODE_INDEX": "1", **env}
    return subprocess.run(
        [ROOT / "rehearsal" / "bin" / "npu-smi", *argv],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_npu_smi_shows_idle_devices() -> None:
    table = smi("info")
    assert table.returncode == 0
    assert table.stdout.count("No running processes found in NPU") == 4
    assert table.stdout.count("| OK  ") == 4
    assert len({len(line) for line in table.stdout.splitlines()}) == 1
    assert "Total Count                    : 4" in smi("info", "-l").stdout
    assert "Software Version" in smi("info", "-t", "board", "-i", "3").stdout
    assert smi("info", "-t", "board", "-i", "4").returncode == 1
    assert npu_smi.VERSION in smi("-v").stdout


def test_npu_smi_busy() -> None:
    busy = smi("info", REHEARSAL_FAULTS="busy@1.npu-smi").stdout
    assert busy.count("No running processes found in NPU") == 3
    assert "4242" in busy
    assert "4242" not in smi("info", REHEARSAL_FAULTS="busy@0.npu-smi").stdout
    assert smi("info", REHEARSAL_FAULTS="crash=3@1.npu-smi").returncode == 3


def test_mooncake_flags() -> None:
    assert mooncake.parse(["-port", "1", "--metrics_port=2", "--enable_gc", "--noenable_ha"]) == {
        "port": "1",
        "metrics_port": "2",
        "enable_gc": "true",
        "enable_ha": "false",
    }
    for argv, text in [
        (["--prt", "1"], "unknown command line flag 'prt'"),
        (["--port", "x"], "illegal value 'x' specified for int32 flag 'port'"),
        (["--port"], "flag '--port' is missing its argument"),
    ]:
        with pytest.raises(ValueError) as error:
            mooncake.parse(argv)
        assert str(error.value) == text


def test_mooncake_master_serves_on_its_own_address_and_ends(yard: Yard) -> None:
    address = yard.address()
    port, metrics = str(yard.port(address)), str(yard.port(address))
    arguments = [
        "--port",
        port,
        "--metrics_port",
        metrics,
        "--eviction_high_watermark_ratio",
        "0.9",
        "--eviction_ratio",
        "0.1",
        "--default_kv_lease_ttl",
        "11000",
    ]
    master = yard.start(*arguments, program="mooncake_master", address=address).says(
        "Master service started"
    )
    socket.create_connection((address, int(port)), timeout=5).close()
    with urllib.request.urlopen(f"http://{address}:{metrics}/metrics", timeout=5) as answer:
        assert b"master_key_count" in answer.read()
    second = yard.start("--port", port, program="mooncake_master", address=address)
    assert second.exit_code() == 1
    master.process.terminate()
    assert master.exit_code() == 0


@pytest.mark.parametrize(
    ("faults", "code"),
    [("crash=4@0.pool:ready", 4), ("kill9@0.pool:+0.1", -signal.SIGKILL), ("exit0@*.pool:load", 0)],
)
def test_mooncake_master_faults(yard: Yard, faults: str, code: int) -> None:
    assert (
        yard.start(
            "--port", "50051", "--metrics_port", "50052", program="mooncake_master", faults=faults
        ).exit_code()
        == code
    )


def test_mooncake_master_refuses_unknown_flags(yard: Yard) -> None:
    master = yard.start("--bogus", "1", program="mooncake_master")
    assert master.exit_code() == 1
    assert "ERROR: unknown command line flag 'bogus'" in master.log


def test_memcache_config_both_ways() -> None:
    lines = (
        "# comment\nock.mmc.meta_service_url = tcp://127.0.0.1:5000\n"
        "ock.mmc.meta_service.config_store_url = tcp://[::1]:6000\n"
    )
    read = memcache.read_config(lines)
    assert read == {
        "meta_service_url": "tcp://127.0.0.1:5000",
        "config_store_url": "tcp://[::1]:6000",
    }
    assert memcache.read_config('{"ock.mmc.meta_service_url": "a"}') == {"meta_service_url": "a"}
    assert memcache.address(read["config_store_url"]) == ("::1", 6000)
    with pytest.raises(ValueError):
        memcache.address("nowhere")


def test_memcache_meta_service(tmp_path: Path, yard: Yard) -> None:
    address = yard.address()
    port, store = yard.port(address), yard.port(address)
    file = tmp_path / "meta.conf"
    file.write_text(
        "ock.mmc.meta_service_url = "
        f"tcp://{address}:{port}\nock.mmc.meta_service.config_store_url = tcp://0.0.0.0:{store}\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "rehearsal" / "lib"),
        "MMC_META_CONFIG_PATH": str(file),
        "REHEARSAL_ADDRESS": address,
    }
    command = [sys.executable, "-c", "from memcache_hybrid import MetaService; MetaService.main()"]
    service = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        for wanted in (port, store):
            for _ in range(250):
                try:
                    socket.create_connection((address, wanted), timeout=5).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.02)
            else:
                raise AssertionError(f"nobody listens on {wanted}")
        service.terminate()
        assert service.wait(10) == 0
    finally:
        service.kill()
        service.wait()
    del environment["MMC_META_CONFIG_PATH"]
    refused = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert refused.returncode == 1
    assert "MMC_META_CONFIG_PATH is not set" in refused.stderr
