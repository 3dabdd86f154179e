"""Structured logs on stderr, for people or as JSON."""

import logging
import sys
from typing import TextIO

import structlog


def set_up_logs(*, process: str, json: bool, stream: TextIO | None = None) -> None:
    """Send every log of this process to stderr, or to `stream`. No key, prompt or answer is ever among the fields."""
    stream = sys.stderr if stream is None else stream
    renderer = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(stream=stream, level=logging.WARNING, format=f"%(levelname)s {process} %(name)s: %(message)s")
