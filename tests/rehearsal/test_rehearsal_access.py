"""Options that change how one must talk to a server: the stand-in does what vLLM does."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from standins import ROOT, Standin, Yard

from tests.faults import rehearse

MAKE = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout key.pem -out cert.pem"


def told(server: Standin, path: str, key: str = "") -> int:
    """The status of an answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return server.call("GET", path, **headers)[0]


def chat(server: Standin, key: str = "", **more: object) -> int:
    """The status of a completion."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **more}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return server.post("/v1/chat/completions", body, **headers)[0]


def test_one_of_its_keys_opens_it(yard: Yard) -> None:
    server = yard.start("--api-key", "one", "two", VLLM_API_KEY="other").ready()
    for path in ("/health", "/metrics", "/version", "/ping"):
        assert told(server, path) == 200
    assert [chat(server, key) for key in ("", "one", "two", "three", "other")] == [
        401, 200, 200, 401, 401,
    ]  # fmt: skip
    assert server.post("/tokenize", {"prompt": "a"}) == (401, {"error": "Unauthorized"})
    assert server.call("POST", "/v1/completions", {}, Authorization="Basic one")[0] == 401
    assert "one" not in server.log.split("non-default args")[1].split("\n")[0]


def test_its_environment_has_the_key(yard: Yard) -> None:
    server = yard.start(VLLM_API_KEY="sesame").ready()
    assert [chat(server, key) for key in ("", "sesame")] == [401, 200]


def test_an_empty_key_is_none(yard: Yard) -> None:
    assert chat(yard.start("--api-key", "", VLLM_API_KEY="sesame").ready()) == 200


def test_a_root_path_is_taken_off_and_not_asked_for(yard: Yard) -> None:
    server = yard.start("--root-path", "/llm", "--api-key", "one").ready()
    for path in ("/health", "/llm/health", "/metrics", "/llm/metrics"):
        assert told(server, path) == 200
    assert [told(server, path) for path in ("/v1/models", "/llm/v1/models")] == [401, 401]
    assert [told(server, path, "one") for path in ("/v1/models", "/llm/v1/models")] == [200, 200]
    assert told(server, "/llmx/health") == 404


def test_another_name_than_those_it_serves(yard: Yard) -> None:
    server = yard.start("--served-model-name", "a", "b").ready()
    assert [chat(server, model=name) for name in ("a", "b", "M")] == [200, 200, 404]


def test_a_socket_file_is_all_it_listens_on(yard: Yard, tmp_path: Path) -> None:
    server = yard.start("--uds", str(tmp_path / "s")).says("Application startup complete")
    with pytest.raises(OSError, match="refused"):
        server.call("GET", "/health", timeout=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert b"200 OK" in client.recv(1000)


@pytest.fixture
def certificate(tmp_path: Path) -> list[str]:
    """Options with a certificate."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(MAKE.split(), cwd=tmp_path, check=True, capture_output=True)
    return ["--ssl-certfile", f"{tmp_path}/cert.pem", "--ssl-keyfile", f"{tmp_path}/key.pem"]


def test_a_certificate_makes_it_https(yard: Yard, certificate: list[str]) -> None:
    server = yard.start(*certificate).says("Application startup complete")
    context = ssl.create_default_context(cafile=certificate[1])
    context.check_hostname = False
    client = http.client.HTTPSConnection(server.address, server.port, timeout=5, context=context)
    client.request("GET", "/health")
    assert client.getresponse().status == 200
    client.close()
    with pytest.raises((OSError, http.client.HTTPException)):
        server.call("GET", "/health", timeout=1)


@pytest.mark.parametrize("wrong", [["--ssl-certfile", "/nowhere"], ["--ssl-keyfile", "/nowhere"]])
def test_a_certificate_it_cannot_use_ends_it_once_it_has_loaded(
    yard: Yard, wrong: list[str]
) -> None:
    server = yard.start(*wrong)
    assert server.exit_code() == 1
    assert "Error" in server.log and "Loading" in server.log


@pytest.mark.parametrize(
    ("case", "env"),
    [("configs/quickstart.yaml", {"VLLM_API_KEY": "sesame-1-key"})],
)
def test_a_rehearsal_speaks_the_machine_s_key(
    case: str, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        rehearse.command(case, tmp_path / "run"),
        cwd=ROOT,
        env=rehearse.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if b"sesame-1-key" in path.read_bytes()]
