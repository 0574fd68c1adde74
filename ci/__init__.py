"""What runs once, on the machine that starts a run: never on a node."""

import steps  # noqa: F401  (it prepares a start with `python -m`)
