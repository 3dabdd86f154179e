"""The command line: one file a command."""


def main() -> None:
    """Be `batchmill`. The processes that `serve` starts come by here, too, and need no commands."""
    from batchmill.cli.main import main as run  # noqa: PLC0415 - a third of a second in each of them

    run()
