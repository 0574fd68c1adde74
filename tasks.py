"""The invoke namespace: every step of a run, alone (``invoke --list``)."""

from __future__ import annotations

from invoke import Collection

from ci import tasks as runner
from k8s import tasks as cluster
from steps import tasks
from steps.core import door

door.install()
tasks.refuse_well()
namespace = Collection.from_module(tasks)
namespace.add_task(runner.hosts_check)
namespace.add_task(runner.size)
namespace.add_task(runner.replay)
namespace.add_task(runner.doctor)
namespace.add_task(cluster.fetch)
namespace.add_task(cluster.follow)
