"""The linter: rules that hold a whole resolved fleet against itself.

``fleet`` is what rules look at, ``registry`` how a rule is written, ``rules``
the rules by theme, ``engine`` what runs them and honours ignores. Adding a
rule is one function with one ``@rule`` line in a module of ``rules``.
"""
