"""The steps of a multinode run, one verb a module.

Each module is an importable function, ``python -m steps.<verb>`` and an invoke
task, all with the same arguments. Steps know the nouns in ``steps.core`` and
nothing of one another; only ``steps.node`` chains them.
"""
