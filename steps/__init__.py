"""The steps of a multinode run, one verb a module.

Each module is an importable function, ``python -m steps.<verb>`` and an invoke
task, all with the same arguments. Steps know the nouns in ``steps.core`` and
nothing of one another; only ``steps.node`` chains them.
"""

import sys

if sys.argv[:1] == ["-m"]:  # a module of ours is being started, and its imports may fail
    import _signal  # type: ignore[import-not-found]

    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # Ctrl-C ends us without a traceback, until the door can say so.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from steps.core import door

    door.install()
