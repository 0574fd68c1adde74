"""Secrets out of text, values and files; ordinary text stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.core.record.cleaning import clean
from steps.core.redaction import MASK, Redactor, is_secret_name

SECRET = "correct-horse-battery"
ONE = Redactor([SECRET])


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "MODELSCOPE_API_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD",
        "OPENAI_API_KEY", "apikey", "MY_ACCESS_KEY", "KUBECONFIG_B64", "token", "password",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
    assert ONE.value({name: "anything"}) == {name: MASK}


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens", "output_tokens", "TOKENIZERS_PARALLELISM", "MAX_NUM_BATCHED_TOKENS",
        "tokens", "STOP_TOKEN_IDS", "HF_TOKEN_PATH", "PATH", "AUTHOR", "KEYBOARD", "tokenizer",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    ],
)  # fmt: skip
def test_ordinary_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"the {SECRET}!", f"the {MASK}!"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {MASK}"),
        ('"authorization": "Bearer abcdef"', f'"authorization": "Bearer {MASK}"'),
        (
            "pip install https://me:pw@pypi.example/x",
            f"pip install https://me:{MASK}@pypi.example/x",
        ),
        ("vllm serve m --api-key abc --port 1", f"vllm serve m --api-key {MASK} --port 1"),
        ("vllm serve m --api-key=abc", f"vllm serve m --api-key={MASK}"),
        ("['--api-key', 'abc', '--port']", f"['--api-key', '{MASK}', '--port']"),
        ('["--hf-token", "abc"]', f'["--hf-token", "{MASK}"]'),
        ("use hf_abcdefghijklmnopqrstuvwxyz now", f"use {MASK} now"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123", MASK),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", MASK),
    ],
)
def test_secrets_in_text(text: str, clean: str) -> None:
    assert ONE.text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        '{"max_tokens": 512, "prompt_tokens": 7, "total_tokens": 12}',
        "tokens/s: 1234.5, Output Token Throughput",
        "http://127.0.0.1:8080/v1 and user@host:22",
        "--api-key --port 8000",
        "vllm serve m --tokenizer-mode auto --token-file /run/x",
        "the task-sk-1 of disk-abcdefghijklmnopqrstuvwxyz",
        "engine hf_overrides, ghost, eyJ",
        "Authorization failed: no bearer given",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert ONE.text(text) == text


@given(st.text("abcdefghij \n:-_/=.,'\"0123456789", max_size=200))
def test_text_without_secrets_stays(text: str) -> None:
    assert Redactor(["zzzzzzzz"]).text(text) == text


def test_short_values_are_left() -> None:
    assert Redactor(["abc", ""]).text("abcdef") == "abcdef"


def test_the_longer_secret_first() -> None:
    assert Redactor(["secret", "secret-longer"]).text("a secret-longer b") == f"a {MASK} b"


def test_of_an_environment() -> None:
    env = {"HF_TOKEN": "tok-en-123", "MAX_TOKENS": "128000", "HOME": "/home/user"}
    redactor = Redactor(["run-token"])
    redactor.study(env)
    assert redactor.text("tok-en-123 128000 /home/user run-token") == (
        f"{MASK} 128000 /home/user {MASK}"
    )


def test_values() -> None:
    value = {
        "argv": ["vllm", "--api-key", "abc", "--port", "80"],
        "env": {"HF_TOKEN": "x", "N": "1"},
        "n": 1,
        "none": None,
        "deep": [{"password": "p", "text": SECRET}],
        "token": "",
    }
    assert ONE.value(value) == {
        "argv": ["vllm", "--api-key", MASK, "--port", "80"],
        "env": {"HF_TOKEN": MASK, "N": "1"},
        "n": 1,
        "none": None,
        "deep": [{"password": MASK, "text": MASK}],
        "token": "",
    }
    assert json.dumps(ONE.value(value))


def test_a_file_of_many_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    line = b"INFO generated 128 tokens, max_tokens=512 " + b"x" * 200 + b"\n"
    path.write_bytes(line * 15_000 + b"key " + SECRET.encode() + b" \xff\r\n" + line)
    assert clean(path, ONE)
    assert path.read_bytes() == line * 15_000 + b"key " + MASK.encode() + b" \xff\r\n" + line
    assert not clean(path, ONE)
    assert [p.name for p in tmp_path.iterdir()] == ["server.log"]


@pytest.mark.parametrize("offset", range(-25, 3, 3))
def test_a_secret_over_the_border_of_two_reads_is_seen(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n" * ((1 << 20) + offset) + SECRET.encode() + b"\n")
    assert clean(path, ONE)
    assert SECRET.encode() not in path.read_bytes()


def test_a_key_of_many_lines_is_hidden_in_files(tmp_path: Path) -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----"
    path = tmp_path / "log"
    path.write_text(f"loaded\n{key}\n")
    assert clean(path, Redactor([key]))
    assert "MIIEv" not in path.read_text()
    assert "kqhki" not in path.read_text()


def test_a_file_that_cannot_be_cleaned_leaves_nothing_beside_it(tmp_path: Path) -> None:
    class Broken(Redactor):
        def text(self, text: str) -> str:
            raise OSError("disk full")

    path = tmp_path / "log"
    path.write_text(f"a {SECRET}\n")
    with pytest.raises(OSError, match="disk full"):
        clean(path, Broken([SECRET]))
    assert [p.name for p in tmp_path.iterdir()] == ["log"]
