"""Mutants: the firmware with one check, flush or count taken out, and the tests that must notice.

Each module of `areas` lists some, as data: a name, a file, a piece of its text, what to put there instead.
`python -m tools.mutants` (`make mutants`) applies them one at a time to a copy of the sources and runs the
tests there. A mutant that no test notices is a hole in the tests.
"""
