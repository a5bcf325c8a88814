"""The command line: parse, call the API, print."""

from phiconv.cli.commands import main

__all__ = ["main"]
