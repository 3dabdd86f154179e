"""Fuzz target: any bytes as an input file; nothing but a verdict may come of them."""

import io
from dataclasses import replace

import atheris

# What is reached there guides what comes next.
with atheris.instrument_imports(include=["batchmill"]):
    from batchmill.spec.limits import OPEN
    from batchmill.spec.lines import Checker, Line, read_lines, split_envelope
    from batchmill.spec.models import with_model

_LIMITS = replace(OPEN, max_line_bytes=4096, media_urls="public")


def one_input(data: bytes) -> None:
    """Check a file; each line that is not blank is good or has errors under its own number, and a good one can go."""
    checker = Checker(endpoint=_LIMITS.default_endpoint, limits=_LIMITS, known_models=None)
    for raw in read_lines(io.BytesIO(data).readline, _LIMITS.max_line_bytes):
        checked = checker.check(raw)
        if isinstance(checked, Line):
            with_model(split_envelope(raw.text).body, "another")
        else:
            assert checked
            assert all(error.line == raw.number for error in checked)


if __name__ == "__main__":
    import sys

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
