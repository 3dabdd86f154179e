"""What the processes say: structured logs on stderr, as lines for people or as JSON for machines."""

import logging
import sys

import structlog


def set_up_logs(*, process: str, json: bool) -> None:
    """Send every log of this process to stderr. No key, prompt or answer is ever among the fields."""
    renderer = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format=f"%(levelname)s {process} %(name)s: %(message)s"
    )
