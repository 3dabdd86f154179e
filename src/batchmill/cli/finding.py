"""What a check of `batchmill doctor` found: a sentence, and what to do."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"  # it works, but not for long, or not as one may think
    PROBLEM = "problem"  # something does not work


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: one sentence, and what to do unless all is well."""

    check: str
    verdict: Verdict
    sentence: str
    advice: str | None = None


def ok(check: str, sentence: str) -> Finding:
    """Return that all is well."""
    return Finding(check=check, verdict=Verdict.OK, sentence=sentence)


def warning(check: str, sentence: str, advice: str) -> Finding:
    """Return that something should be looked at."""
    return Finding(check=check, verdict=Verdict.WARNING, sentence=sentence, advice=advice)


def problem(check: str, sentence: str, advice: str) -> Finding:
    """Return that something does not work."""
    return Finding(check=check, verdict=Verdict.PROBLEM, sentence=sentence, advice=advice)
