"""`make faults`: storms with fresh seeds for so long, then every planted bug; what was seen is printed as it comes.

    PYTHONPATH=src:tests python -m faults --minutes 30 [--seed N] [--ground postgresql+s3]

It ends with 1 as soon as a promise was broken, a run was void, or a planted bug was not found. The folder of a run that
failed is kept, and its seed replays it.
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from faults.chaos import GROUNDS, Plan, run_enclosed
from faults.ground import DataDirectory
from faults.planted import BUGS, LARGE, REMOTE_BUGS, is_found
from faults.remote import Remote
from faults.sandbox import not_permitted

_STORM_SECONDS = 155.0
_FAULTS = 640
_SHORT_SECONDS = 40.0
_SHORT_FAULTS = 160
_SHORT_LINES = 700  # of a batch at most: as many as else pass through every state in that time
# A renewal is some eight round trips through a proxy: on a busy machine a second is not enough for them.
_REMOTE_LEASE = 2.0


# What it takes for a bug to be one.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "lost_commit_taken_for_failed": ("lost commits",),
    "away_is_our_fault": ("500",),
    "lost_put_taken_for_another": ("lost reply",),
}


def storm(seed: int, ground: str = DataDirectory.name) -> Plan:
    """Return the run of `make faults`, with this seed: past one machine with each trouble once."""
    return _on(ground, Plan(seed=seed, seconds=_STORM_SECONDS, faults=_FAULTS, outages=8, ground=ground))


def short_storm(seed: int, ground: str = DataDirectory.name) -> Plan:
    """Return the run of CI: it inflicts the same, less often."""
    plan = Plan(
        seed=seed,
        seconds=_SHORT_SECONDS,
        faults=_SHORT_FAULTS,
        outages=3,
        most_lines=_SHORT_LINES,
        ground=ground,
    )
    return _on(ground, plan)


def _on(ground: str, plan: Plan) -> Plan:
    return replace(plan, lease=_REMOTE_LEASE, troubles=tuple(Remote.troubles)) if ground == Remote.name else plan


def short_run(planted: str = "", ground: str = DataDirectory.name) -> Plan:
    """Return the run in which each planted bug must be found."""
    if ground == Remote.name:
        return Plan(
            seed=7,
            seconds=12,
            faults=10,
            outages=0,
            most_lines=1000,
            planted=planted,
            ground=ground,
            lease=_REMOTE_LEASE,
            patience=20.0,
            troubles=_NEEDED.get(planted, ()),
        )
    # With this seed no early batch holds a line that must go alone to its end: that would take half of the time.
    plan = Plan(seed=556, seconds=12, faults=36, stale=8, most_lines=500, planted=planted)
    if planted:
        plan = replace(plan, patience=20.0)
    if planted in LARGE:
        # A stale write that finds its batch near its end would exceed the total, and its row refuses that.
        plan = replace(plan, seconds=8, faults=8, outages=0, most_lines=2500, patience=12.0)
    return plan


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _run(plan: Plan, totals: Counter[str]) -> bool:
    folder = Path(mkdtemp(prefix="batchmill-faults-"))
    verdict = run_enclosed(plan, folder)
    if plan.planted:
        well = is_found(plan.planted, verdict.violations)
        _say(f"{'found' if well else 'NOT FOUND'}: {plan.planted}: {', '.join(verdict.violations) or 'nothing'}")
    else:
        well = not verdict.violations and not verdict.void
        _say(verdict.report())
        totals.update({name: int(figure) for name, figure in verdict.figures.items()})
    if well:
        shutil.rmtree(folder)
    else:
        _say(f"FAILED, and kept in {folder}: {verdict.violations} {verdict.examples} {verdict.void}")
    return well


def _main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--ground", choices=sorted(GROUNDS), default=DataDirectory.name)
    given = options.parse_args()
    if (reason := not_permitted()) is not None:
        _say(f"NOT RUN: {reason}")
        return 1
    seed = int.from_bytes(os.urandom(3)) if given.seed is None else given.seed
    end = time.monotonic() + 60 * given.minutes
    totals: Counter[str] = Counter()
    runs = 0
    while runs == 0 or time.monotonic() < end:
        if not _run(storm(seed + runs, given.ground), totals):
            return 1
        runs += 1
    faults, extra = totals["worker faults"], totals["extra executions"]
    _say(f"{runs} runs from seed {seed}: {faults} worker faults, {totals['lines']} lines, {extra} executed again")
    bugs = REMOTE_BUGS if given.ground == Remote.name else BUGS
    found = [_run(short_run(bug.__name__, given.ground), totals) for bug in bugs]
    _say(f"{sum(found)} of {len(bugs)} planted bugs found")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(_main())
