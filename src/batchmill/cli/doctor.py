"""`batchmill doctor`: what is set up, what is wrong, and what to do; it changes nothing."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from batchmill.cli.finding import Finding, Verdict, ok, problem, warning
from batchmill.client.text import shown
from batchmill.settings import BadSettings, Settings, load_settings

_PREFIX = "BATCHMILL_"
_OTHERS = frozenset({"BATCHMILL_API_KEY", "BATCHMILL_SERVER"})  # those of the client commands
_MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


def run_doctor(
    flags: Mapping[str, Any], *, server: str | None, key: str | None, as_json: bool, say: Callable[[str], None]
) -> bool:
    """Check everything, tell each finding as it is made; return whether there is no problem."""
    findings = []
    for finding in _findings(flags, server=server, key=key):
        findings.append(finding)
        if not as_json:
            for line in _lines(finding):
                say(line)
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    sound = not counts[Verdict.PROBLEM]
    if as_json:
        say(json.dumps({"sound": sound, "findings": [asdict(finding) for finding in findings]}))
    else:
        say(f"{counts[Verdict.OK]} ok, {counts[Verdict.WARNING]} warnings, {counts[Verdict.PROBLEM]} problems.")
    return sound


def _findings(flags: Mapping[str, Any], *, server: str | None, key: str | None) -> Iterator[Finding]:
    from batchmill.cli import checkup  # noqa: PLC0415 - half a second of imports that `--help` does not need

    yield checkup.python()
    yield from check_names(os.environ)
    settings: Settings | None = None
    try:
        settings = load_settings(dict(flags))
    except BadSettings as fault:
        for line in str(fault).splitlines():
            yield problem("settings", f"{line.rstrip('.')}.", "Set it right, and ask again: the rest depends on it")
    if settings is not None:
        yield ok("settings", f"They make sense{f'; the file is {settings.settings}' if settings.settings else ''}.")
        yield from checkup.machine(settings)
        yield from checkup.storage(settings)
        yield from checkup.backends(settings)
    if server is not None:
        yield from checkup.server(server, key)


def check_names(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look for variables that look like settings and are none."""
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields} | _OTHERS
    for name in sorted(environment):
        if not name.upper().startswith(_PREFIX) or name.upper() in known:
            continue
        close = get_close_matches(name.upper(), known, n=1)
        advice = f"Perhaps {close[0]} is meant" if close else "Unset it, unless it holds a backend's key"
        yield warning("environment", f"{shown(name, 80)} is no setting: it does nothing.", advice)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{_MARKS[finding.verdict]}  {finding.check}: {shown(finding.sentence)}"
    if finding.advice is not None:
        yield f"         -> {shown(finding.advice)}."
