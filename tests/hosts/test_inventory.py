"""Hosts files and ``--hosts``: what they mean, and every mistake in them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.backends.hosts import inventory
from ci.backends.hosts.inventory import Host
from steps.core.errors import CaseError, UsageError


def test_a_list_of_hosts_on_the_command_line() -> None:
    found = inventory.of_argument("10.0.0.1, root@node-b:2222,[fd00::1]:22,fd00::2").hosts
    assert found == (
        Host("10.0.0.1"),
        Host("node-b", user="root", port=2222),
        Host("fd00::1", port=22),
        Host("fd00::2"),
    )


@pytest.mark.parametrize("word", ["a b", "host:99999", "-oProxyCommand=x", "10.0.0.300", "u@"])
def test_what_is_no_host(word: str) -> None:
    with pytest.raises(UsageError, match="is no host"):
        inventory.of_argument(word)


def test_defaults_hold_for_hosts_that_do_not_say_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "defaults:\n  user: ascend\n  container: vllm\n  environment: /opt/env.sh\n"
        "hosts:\n  - 10.0.0.1\n  - address: 10.0.0.2\n    user: root\n    lease: 5\n"
    )
    first, second = inventory.of_file(path).hosts
    assert (first.user, first.container, first.environment) == ("ascend", "vllm", ("/opt/env.sh",))
    assert (second.user, second.lease) == ("root", 5.0)
    assert str(first) == "10.0.0.1, container vllm"


def test_every_mistake_of_a_hosts_file_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "hosts:\n"
        "  - address: 10.0.0.1\n    prot: 22\n"
        "  - address: 10.0.0.1\n    port: 70000\n"
        "  - ssh: jump\n"
        "  - address: 10.0.0.3\n    directory: runs\n"
        "  - 17\n"
    )
    with pytest.raises(CaseError) as caught:
        inventory.of_file(path)
    found = {(p.place.line, p.message.split(":")[0]) for p in caught.value.problems}
    assert {(3, "unknown field 'prot'"), (5, "port"), (8, "directory")} <= found
    text = str(caught.value)
    for words in ("Did you mean 'port'", "listed twice", "has no 'address'", "found 17"):
        assert words in text
