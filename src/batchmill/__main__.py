"""`python -m batchmill` is `batchmill`."""

from batchmill.cli import main

main()
