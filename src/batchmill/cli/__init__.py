"""The command line: one file a command."""

from batchmill.cli.main import main

__all__ = ["main"]
