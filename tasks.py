"""The invoke namespace: every step of a run, alone (``invoke --list``)."""

from __future__ import annotations

from invoke import Collection

from steps import tasks

namespace = Collection.from_module(tasks)
