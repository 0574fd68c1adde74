"""Whether clients will accept a server's certificate, tried before any server is started.

Enters: names of files, the address under which clients know the server. Leaves: what is
wrong, in words. Touches: reads those files; both ends of one handshake, in memory.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """What a server speaks TLS with: names of files on its node."""

    file: str
    key: str
    ciphers: str = ""


def trouble(with_: Certificate, host: str, trust: str | None) -> str:
    """What keeps a client from talking to the server; empty when nothing does.

    Args:
        host: the address that a client asks for.
        trust: a file of issuers that a client trusts, empty for the machine's own;
            None: the clients do not look.
    """
    try:
        for name in filter(None, (with_.file, with_.key, trust)):
            Path(name).open("rb").close()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            server.load_cert_chain(with_.file, with_.key or None)
        except ssl.SSLError as error:
            return f"no certificate with its key ({error.reason})"
        if with_.ciphers:
            server.set_ciphers(with_.ciphers)
        client = ssl.create_default_context(cafile=trust or None)
        if trust is None:
            client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        _shake_hands(server, client, host)
    except (OSError, ValueError) as error:
        return getattr(error, "verify_message", "") or str(error)
    return ""


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(5):  # more messages than a handshake has
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
