"""Settings of the core's tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: the machines of CI are shared. No database: tests leave nothing behind.
settings.register_profile(
    "multinode",
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("multinode")
