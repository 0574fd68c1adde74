"""Who we are to the API server: kubeconfig, the pod's own account, TLS, proxy.

Enters: ``KUBECONFIG_B64``, ``KUBECONFIG``, ~/.kube/config, or a pod's account.
Leaves: the client's configuration and a namespace. Touches: those files.
"""

from __future__ import annotations

import base64
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from steps.core import settings
from steps.core.errors import InfraError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def proxy(configuration: Any) -> dict[str, Any]:
    """The kubeconfig's proxy, for websockets, which know only the environment's."""
    parts = urlsplit(configuration.proxy or "")
    if not parts.hostname:
        return {}
    direct = (configuration.no_proxy or "").replace(" ", "")
    found: dict[str, Any] = {
        "http_proxy_host": parts.hostname,
        "http_proxy_port": parts.port or (443 if parts.scheme == "https" else 80),
        "http_no_proxy": direct.split(",") if direct else [],
        "proxy_type": parts.scheme if parts.scheme.startswith("socks") else "http",
    }
    if parts.username:
        found["http_proxy_auth"] = unquote(parts.username), unquote(parts.password or "")
    return found


def tls_options(configuration: Any) -> dict[str, Any]:
    """The connection pool's TLS settings, for websockets."""
    name = configuration.tls_server_name
    return {"context": _tls(configuration), **({"server_hostname": name} if name else {})}


def _tls(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert or None,
        cadata=getattr(configuration, "ca_cert_data", None) or None,
    )
    if configuration.assert_hostname is False:
        context.check_hostname = False
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def load() -> tuple[Any, str]:
    """Configuration and namespace."""
    from kubernetes import client
    from kubernetes import config as untyped

    config: Any = untyped

    found = settings.read()
    configuration = client.Configuration()
    try:
        if found.kubeconfig_b64:
            document = _decoded(found.kubeconfig_b64)
            config.load_kube_config_from_dict(
                document, client_configuration=configuration, persist_config=False
            )
            return configuration, namespace()
        if file := _files():
            config.load_kube_config(file, client_configuration=configuration, persist_config=False)
            return configuration, namespace()
        if (_ACCOUNT / "token").is_file():
            config.load_incluster_config(client_configuration=configuration)
            return configuration, namespace()
    except (config.ConfigException, OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise _unusable(error) from None
    raise InfraError(
        "there is no kubeconfig: neither KUBECONFIG_B64 nor KUBECONFIG is set, ~/.kube/config is "
        "not there, and this is no pod",
        "Set one of them; docs/kubernetes.md says which rights it needs.",
    )


def _decoded(text: str) -> dict[str, Any]:
    document = yaml.safe_load(base64.b64decode(text, validate=False))
    if not isinstance(document, dict):
        raise ValueError("KUBECONFIG_B64 does not hold a kubeconfig")
    return document


def _files() -> str:
    """Where the kubeconfig is, as ``KUBECONFIG`` says it; empty when there is none."""
    home = Path("~/.kube/config").expanduser()
    return settings.read().kubeconfig or (str(home) if home.is_file() else "")


def namespace() -> str:
    """The namespace of the kubeconfig's context, else of the pod we are in, else ``default``.

    Nobody is asked for credentials.

    Raises:
        InfraError: there is a kubeconfig, and it cannot be read.
    """
    inline, names = settings.read().kubeconfig_b64, _files()
    try:
        if inline:
            documents = [_decoded(inline)]
        elif names:
            # Of several files, kubectl passes over those that are not there.
            paths = [path for path in map(Path, names.split(os.pathsep)) if path.is_file()]
            documents = [yaml.safe_load(path.read_text("utf-8")) or {} for path in paths]
        else:
            account = _ACCOUNT / "namespace"
            return (account.read_text().strip() if account.is_file() else "") or "default"
        current = next(filter(None, (each.get("current-context") for each in documents)), "")
        for entry in (entry for each in documents for entry in each.get("contexts") or []):
            if entry.get("name") == current:
                return str((entry.get("context") or {}).get("namespace") or "default")
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise _unusable(error) from None
    return "default"


def _unusable(error: Exception) -> InfraError:
    return InfraError(
        f"the kubeconfig cannot be used: {error}",
        "Check KUBECONFIG_B64, KUBECONFIG or ~/.kube/config with `kubectl get pods`.",
    )
