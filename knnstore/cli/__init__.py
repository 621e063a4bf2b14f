"""The command line: parse, call one function, print, exit."""

from knnstore.cli.commands import main

__all__ = ["main"]
