"""How one must talk to servers: what no client here can do, and what the servers disagree on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from steps.core.errors import Place, Severity
from steps.core.plan import proxies
from steps.core.vllm import access
from steps.lint.fleet import Fleet, Server
from steps.lint.registry import Finding, rule

ERROR = Severity.ERROR
_WHY = {
    "--uds": "other nodes, proxies and AISBench cannot reach a socket file",
    "--middleware": "nobody here knows what it wants of a client",
    "--ssl-cert-reqs": "no client here has a certificate of its own to show",
    "--ssl-keyfile": "vLLM ends with it once it has loaded: there is no --ssl-certfile",
    "--ssl-certfile": "upstream's proxy script asks servers over http only",
}
_HEADER = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


@rule("MN117", ERROR, "Server that no client here can ask")
def askable(fleet: Fleet) -> Iterator[Finding]:
    """Probes, benchmarks and proxies ask a server over TCP, from other nodes too, with a key and
    over TLS where it wants that (`--api-key`, `VLLM_API_KEY`, `--ssl-certfile`), with or without
    its `--root-path`. They cannot reach a socket file (`--uds`), have no certificate of their own
    (`--ssl-cert-reqs 2`), and cannot know what a `--middleware` wants of them. Upstream's proxy
    script speaks http to servers. A keyfile without a certificate ends vLLM once it has loaded, and
    a header carries only ASCII."""
    for server in fleet.commands:
        if server.headless:
            continue
        command = server.command
        certified = access.certificate(command)
        wrong = {
            "--uds": command.text("--uds"),
            "--middleware": command.text("--middleware"),
            "--ssl-cert-reqs": command.number("--ssl-cert-reqs", 0) > 1,
            "--ssl-keyfile": certified and not certified.file,
            "--ssl-certfile": certified and certified.file and _behind_script(fleet),
        }
        for name in (name for name, found in wrong.items() if found):
            yield Finding(f"{name}: {_WHY[name]}", command.place_of(name), f"Remove {name}.")
        yield from _keys(fleet, server)


def _behind_script(fleet: Fleet) -> bool:
    return fleet.case.split is not None and not proxies.meant(fleet.case.proxy.kind).over_tls


def _keys(fleet: Fleet, server: Server) -> Iterator[Finding]:
    """Keys that cannot be sent."""
    place = _key_place(fleet, server)
    for key in server.process.keys:
        if not _HEADER.fullmatch(key):
            text = "a key with other signs than ASCII's, which no header carries"
            yield Finding(text, place, "Take letters and digits.")


@rule("MN118", ERROR, "No key opens every server")
def one_key(fleet: Fleet) -> Iterator[Finding]:
    """A proxy sends one key to all servers: those that want one have one in common."""
    if fleet.case.split is None:
        return
    guarded = [server for server in fleet.commands if server.process.keys and not server.headless]
    if guarded and not access.common([server.process.keys for server in guarded]):
        first = guarded[0]
        so_far = [first.process.keys]
        for other in guarded[1:]:
            so_far.append(other.process.keys)
            if not access.common(so_far):
                break
        yield Finding(
            f"no key opens node {other.index} and all nodes before it",
            _key_place(fleet, other),
            "Give all servers of the fleet one key.",
            (_key_place(fleet, first),),
        )


def _key_place(fleet: Fleet, server: Server) -> Place:
    if server.command.option("--api-key"):
        return server.command.value_place("--api-key")
    return fleet.env_place(server.node, access.KEY_VARIABLE)
