"""How tests call the programs."""

import sys


def call(monkeypatch, program, *arguments):
    """Exit status of a program, a module with a ``main``, called as from the command line."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        return program.main()
    except SystemExit as stop:
        return stop.code
