"""Who is let in to a server, and over what: keys, a prefix of paths, TLS, a socket file.

Enters: what the command and the environment say. Leaves: verdicts on requests, a TLS context.
Touches: reads the files of the certificate.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

#: What needs no key. Releases up to 0.32 guard only /v1: who speaks to later ones speaks to those.
PUBLIC = ("/health", "/ping", "/load", "/version", "/metrics")


@dataclass(frozen=True)
class Access:
    """How one must talk to a server; `keys` is None where the command says nothing of them."""

    keys: tuple[str, ...] | None
    root: str
    uds: str
    certificate: str
    private_key: str
    issuers: str
    asks_clients: int
    ciphers: str

    def path(self, path: str) -> str:
        """The path without the prefix, which nobody has to send."""
        return path.removeprefix(self.root) if path.startswith(f"{self.root}/") else path

    def lets_in(self, path: str, authorization: str, key: str) -> bool:
        """Whether a request is answered; `key` is the environment's."""
        keys = [each for each in ((key,) if self.keys is None else self.keys) if each]
        scheme, _, given = authorization.partition(" ")
        open_to_all = not keys or path.startswith(PUBLIC)
        return open_to_all or (scheme.lower() == "bearer" and given in keys)

    def tls(self) -> ssl.SSLContext | None:
        """As uvicorn makes it. Raises OSError, AssertionError."""
        if not self.certificate and not self.private_key:
            return None
        if not self.certificate:
            raise AssertionError
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.private_key or None)
        context.verify_mode = ssl.VerifyMode(self.asks_clients)
        if self.issuers:
            context.load_verify_locations(self.issuers)
        if self.ciphers:
            context.set_ciphers(self.ciphers)
        return context


def read(names: dict[str, Any]) -> Access:
    """What the parsed options say."""
    keys = names.get("api_key")

    def text(name: str) -> str:
        return names.get(name) or ""

    return Access(
        None if keys is None else tuple(keys),
        text("root_path").rstrip("/"),
        text("uds"),
        text("ssl_certfile"),
        text("ssl_keyfile"),
        text("ssl_ca_certs"),
        names.get("ssl_cert_reqs") or 0,
        text("ssl_ciphers"),
    )
