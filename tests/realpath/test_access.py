"""Options that change how one must talk to a server: every client speaks them, no key is told."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from steps import resolve
from tests.faults.rehearse import Outcome
from tests.realpath import fleet
from tests.realpath.fleet import Case, case, checks, local, pool_port, routing, split

MAKE = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout key.pem -out cert.pem"
KEYS = ("sesame-1-key", "sesame-2-key")


def told(data: Case, options: str = "", **envs: str) -> Case:
    """The case with more options and variables for every server."""
    for node in data.get("deployment", ()):
        node["server_cmd"] += f" {options}"
    for node in data.get("templates", ()):
        node["server_cmd_template"] += options.split()
        node["envs"] |= envs
    data["env_common"] |= envs
    return data


def passed(found: Outcome) -> None:
    """It passed, and nobody can read a key in what it left or said."""
    assert (found.code, found.verdict["verdict"]) == (0, "pass"), found.output
    [result] = found.verdict["benchmarks"]
    assert result["requests"]["ok"] == 6
    assert checks(found)["completion"] == "pass"
    assert not [name for name, status in checks(found).items() if status == "fail"]
    assert not [key for key in KEYS if key in found.output]
    files = [path for path in found.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if any(key.encode() in path.read_bytes() for key in KEYS)]


@pytest.mark.parametrize("bench", ["aisbench", "smoke"])
@pytest.mark.parametrize("shape", [case, split], ids=["group", "split"])
def test_keys_on_the_command_line(shape: Any, bench: str, tmp_path: Path) -> None:
    data = told(shape(2), f"--api-key {' '.join(KEYS)}")
    passed(local(tmp_path, data, "--bench", bench))


@pytest.mark.parametrize("shape", [case, split], ids=["group", "split"])
def test_a_key_in_the_case_s_environment(shape: Any, tmp_path: Path) -> None:
    passed(local(tmp_path, told(shape(2), VLLM_API_KEY=KEYS[0])))


def test_a_key_in_a_variable_of_any_name(tmp_path: Path) -> None:
    passed(local(tmp_path, told(case(2), "--api-key $DOOR", DOOR=KEYS[0])))


@pytest.mark.parametrize("shape", [case, split], ids=["group", "split"])
def test_a_key_in_the_machine_s_environment(shape: Any, tmp_path: Path) -> None:
    passed(local(tmp_path, shape(2), VLLM_API_KEY=KEYS[1]))


def test_keys_of_the_routing_dialect(tmp_path: Path) -> None:
    passed(local(tmp_path, told(routing(pool_port()), VLLM_API_KEY=KEYS[0])))


def test_different_keys_that_have_one_in_common(tmp_path: Path) -> None:
    data = split(2)
    data["deployment"][0]["server_cmd"] += f" --api-key {KEYS[0]} {KEYS[1]}"
    data["deployment"][1]["server_cmd"] += f" --api-key {KEYS[1]}"
    passed(local(tmp_path, data))


@pytest.mark.parametrize("shape", [case, split], ids=["group", "split"])
def test_a_root_path(shape: Any, tmp_path: Path) -> None:
    passed(local(tmp_path, told(shape(2), f"--root-path /llm --api-key {KEYS[0]}")))


def test_another_name_of_the_model(tmp_path: Path) -> None:
    data = split(2)
    for node in data["deployment"]:
        node["server_cmd"] = node["server_cmd"].replace("-name tiny", "-name chat tiny")
    passed(local(tmp_path, data))


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_plan_is_shown_without_its_keys(
    form: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MODELS", "DATASETS"):
        monkeypatch.setenv(name, "/data")
    data = told(split(2), f"--api-key $DOOR {KEYS[1]}", DOOR=KEYS[0])
    file, run = fleet.written(tmp_path, data), str(tmp_path / "run")
    words = ["--case", str(file), "--hosts", "10.0.0.1,10.0.0.2", "--run-dir", run]
    assert resolve.main([*words, "--format", form]) == 0
    out = capsys.readouterr().out
    assert "--api-key" in out and not [key for key in KEYS if key in out]


# Certificates


@pytest.fixture
def certified(tmp_path: Path) -> tuple[str, str]:
    """A loopback network and options with a certificate for its addresses."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    network = f"{random.randint(64, 250)}.{random.randint(1, 250)}"
    names = ",".join(f"IP:127.{network}.{number}" for number in (1, 2))
    subprocess.run(
        [*MAKE.split(), "-addext", f"subjectAltName={names}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return network, f"--ssl-certfile {tmp_path}/cert.pem --ssl-keyfile {tmp_path}/key.pem"


def test_https(certified: tuple[str, str], tmp_path: Path) -> None:
    network, options = certified
    data = told(case(2), f"{options} --api-key {KEYS[0]}", SSL_CERT_FILE=f"{tmp_path}/cert.pem")
    found = local(tmp_path, data, "--network", network)
    passed(found)
    assert found.plan["endpoint"]["url"] == f"https://127.{network}.1:8080"


def test_https_of_a_certificate_that_only_aisbench_would_look_at(
    certified: tuple[str, str], tmp_path: Path
) -> None:
    network, options = certified
    found = local(tmp_path, told(case(2), options), "--network", network)
    assert found.code == 3, found.output
    assert fleet.cause(found, "kind", "phase") == ("preflight", "preflight")
    reason = found.verdict["cause"]["reason"]
    assert "--ssl-certfile" in reason and "SSL_CERT_FILE" in reason, reason
    (tmp_path / "again").mkdir()
    passed(local(tmp_path / "again", told(case(2), options), "--network", network, "--bench=smoke"))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("absent.pem", "No such file or directory"),
        ("key.pem", "no certificate with its key"),
        ("other", "IP address mismatch"),
    ],
)
def test_a_certificate_that_cannot_serve_is_found_before_anything_starts(
    file: str, words: str, certified: tuple[str, str], tmp_path: Path
) -> None:
    network, options = certified
    if file == "other":
        network = f"{random.randint(64, 250)}.251"
    else:
        options = options.replace("cert.pem", file)
    data = told(case(1), options, SSL_CERT_FILE=f"{tmp_path}/cert.pem")
    found = local(tmp_path, data, "--network", network)
    assert found.code == 3, found.output
    assert fleet.cause(found, "kind") == ("preflight",)
    assert words in found.verdict["cause"]["reason"], found.output
