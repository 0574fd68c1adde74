"""How clients must talk to a server: with which key, over TLS or not.

Enters: a server's command and environment. Leaves: keys, names of files. Touches nothing.

``--root-path`` changes nothing for a client: vLLM answers with the prefix and without it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from steps.core.system.certificates import Certificate
from steps.core.vllm.commandline import Command

#: Where vLLM looks for a key that its command does not give.
KEY_VARIABLE = "VLLM_API_KEY"
#: Where upstream's proxy script and vllm-router look for the key they send to servers.
PROXY_VARIABLE = "OPENAI_API_KEY"
#: A file of those who issued certificates, for OpenSSL and what is made with it.
TRUST_VARIABLE = "SSL_CERT_FILE"


def keys(command: Command, env: Mapping[str, str]) -> tuple[str, ...]:
    """Keys of which a server wants one; none where it lets everybody in."""
    given = command.option("--api-key")
    return tuple(filter(None, given.values if given else (env.get(KEY_VARIABLE, ""),)))


def common(wanted: Sequence[Collection[str]]) -> str:
    """The first key that opens every server which wants one; empty where there is none."""
    guarded = [keys for keys in wanted if keys]
    every = (key for key in (guarded[0] if guarded else ()) if all(key in k for k in guarded))
    return next(every, "")


def certificate(command: Command) -> Certificate | None:
    """The certificate of a server that speaks TLS."""
    names = [command.text(f"--ssl-{name}") for name in ("certfile", "keyfile", "ciphers")]
    return Certificate(*names) if names[0] or names[1] else None
