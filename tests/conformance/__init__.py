"""What an OpenAI-like server of vLLM 0.32 does, asked of any base URL.

Enters: a URL, or a command that starts a server. Leaves: passed checks, or what was found and
expected. Touches that server only. The stand-in must pass in CI; in ``nox -s e2e_vllm`` the real
engine does too, so that neither the stand-in nor these checks are make-believe.

    python -m tests.conformance http://127.0.0.2:8080

``client`` asks, ``life`` starts, kills and waits.
"""
