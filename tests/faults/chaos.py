"""One run: processes, clients and a storm of faults in a machine of their own; then the checker, and a verdict.

    PYTHONPATH=src:tests unshare -m -p -n -f --mount-proc --kill-child python -m faults.chaos --folder F --plan JSON

This is the first process of its namespaces: a signal can reach only what it has started, and all of it ends with it.
The verdict is one line of JSON on the standard output: `Verdict`.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from batchmill.assemble.storage import Storage, build_clock
from batchmill.cli.keys import make_key
from batchmill.store.backlog import read_backlog
from batchmill.store.batch import unstick
from batchmill.store.database import Statements, Transaction
from batchmill.store.migrate import migrate
from faults.checker import LEFTOVERS, check
from faults.clients import Client
from faults.evidence import Evidence, read_sends
from faults.fleet import API, Backend, Fleet, Slot
from faults.ground import DataDirectory, Ground
from faults.journal import Journal
from faults.launcher import LEASE, STALE_SECONDS, Launcher, Site
from faults.nemesis import WORKER_FAULTS, Fault, Kind, Nemesis, make_schedule
from faults.remote import Remote
from faults.sandbox import enter, loopback
from faults.trail import Trail, lay_trail, read_trail
from faults.weather import LOST_COMMITS

T = TypeVar("T")

ORGANISATIONS = ("ants", "bees", "crabs")
PADDING = 400
# Without a line recorded or a batch moved. Where nothing but garbage is left, each line goes three times alone, at five
# seconds a probe, in turns with those of the other batches.
PATIENCE = 60.0
_QUIET_SECONDS = 180.0  # after the storm, until all batches are final
GROUNDS: Mapping[str, type[DataDirectory] | type[Remote]] = {each.name: each for each in (DataDirectory, Remote)}
_STATES = ("validating", "in_progress", "finalizing", "cancelling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to be; the same plan inflicts the same faults on the same batches."""

    seed: int
    seconds: float
    faults: int
    outages: int = 2
    stale: int = 0  # stops in the middle of a group commit, beside the faults
    workers: int = 4
    most_lines: int = 1500
    ground: str = DataDirectory.name
    troubles: Sequence[str] = ()  # of the ground; each once
    planted: str = ""
    lease: float = LEASE
    patience: float = PATIENCE

    def schedule(self) -> list[Fault]:
        """Return what is inflicted, in order."""
        return make_schedule(
            self.seed,
            seconds=self.seconds,
            faults=self.faults,
            outages=self.outages,
            stale=self.stale,
            lease=self.lease,
            troubles={name: GROUNDS[self.ground].troubles[name] for name in self.troubles},
        )


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What came of a run: it holds if nothing was violated, and counts only if every fault bit (`void` is empty)."""

    plan: Plan
    violations: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    void: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def report(self) -> str:
        """Return what was inflicted and seen, with the seed that does it again."""
        figures = ", ".join(f"{name} {figure:g}" for name, figure in self.figures.items())
        faults = self.figures["worker faults"]
        mean = self.figures["extra executions"] / faults if faults else 0.0
        return f"seed {self.plan.seed}: {figures}; {mean:.1f} executions again a fault"


@dataclass(slots=True, kw_only=True)
class Run:
    """The parts of a run, as long as it lasts."""

    plan: Plan
    ground: Ground
    site: Site
    backend: Backend
    fleet: Fleet
    nemesis: Nemesis
    journal: Journal
    clients: Sequence[Client]
    ending: threading.Event
    unstuck: int = 0

    def quiesce(self) -> bool:
        """Wait without faults until every client has seen its batches end; False if nothing moves any more."""
        self.ending.set()
        end = time.monotonic() + _QUIET_SECONDS
        moved, last = time.monotonic(), self._progress()
        while any(client.thread.is_alive() for client in self.clients):
            self.fleet.keep()
            if (now := self._progress()) != last:
                moved, last = time.monotonic(), now
            if time.monotonic() > min(end, moved + self.plan.patience):
                return False
            time.sleep(0.05)
        return True

    def start_anew(self) -> None:
        """Do what a fresh `serve` does: a batch that five workers in a row have died over is tried again."""

        def statements(tx: Transaction) -> int:
            stuck = read_backlog(tx).stuck
            unstick(tx)
            return stuck

        self.unstuck = asyncio.run(_write(self.site, statements))

    def clear(self) -> None:
        """Wait until the Sweepers have cleared what no batch needs, then end the workers in good order."""
        end = time.monotonic() + 2 * STALE_SECONDS
        while time.monotonic() < end and self._leftovers():
            self.fleet.keep()
            time.sleep(0.2)
        self.fleet.retire(seconds=10.0)

    def evidence(self) -> Evidence:
        """Return all that there is to look at."""
        return Evidence(
            ground=self.ground,
            padding=PADDING,
            orders={name: order for client in self.clients for name, order in client.orders.items()},
            facts=list(self.journal.facts()),
            trail=read_trail(self.ground),
            sends=read_sends(self.backend.log),
            inflicted=self.nemesis.inflicted,
            clients=[client.api() for client in self.clients],
        )

    def _progress(self) -> tuple[int | None, ...]:
        with closing(self.ground.rows()) as rows:
            sql = "SELECT (SELECT max(id) FROM trail_status), (SELECT max(id) FROM trail_done)"
            return rows.all(sql)[0]

    def _leftovers(self) -> list[str]:
        with closing(self.ground.rows()) as rows:
            left = [what for what, sql in LEFTOVERS.items() if rows.all(sql)]
            known = {key for (key,) in rows.all("SELECT key FROM blob")}
        return left + sorted(self.ground.keys() - known)


def run(plan: Plan, folder: Path) -> Verdict:
    """Do all of it."""
    began = time.monotonic()
    with _built(plan, folder) as running:
        running.nemesis.storm(plan.schedule(), seconds=plan.seconds)
        running.start_anew()
        stormed = time.monotonic() - began
        quiet = running.quiesce()
        quieted = time.monotonic() - began
        if quiet:
            running.clear()
        evidence = running.evidence()
        finding = check(evidence)
        finding.check(quiet, "R7 everything comes to its end", "nothing moves any more")
        for client in running.clients:
            finding.check(client.fault is None, "the API answers", repr(client.fault))
        events = Counter(entry.get("event", "?") for entry in _log(running.fleet.log))
        figures = dict(finding.figures) | _figures(running, evidence.trail, events)
    verdict = Verdict(plan=plan, violations=dict(finding.violations), examples=finding.examples, figures=figures)
    times = {"storm": stormed, "until all was final": quieted, "in all": time.monotonic() - began}
    verdict.figures |= {f"seconds {what}": round(seconds, 1) for what, seconds in times.items()}
    verdict.void = sorted(_what_did_not_bite(running, verdict.figures))
    return verdict


@contextlib.contextmanager
def _built(plan: Plan, folder: Path) -> Iterator[Run]:
    """Build everything: what is forked first, then what has threads."""
    log = folder / "processes.log"
    log.touch()
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    backend = Backend(log=folder / "witness.log", padding=PADDING, latency_ms=4)
    launcher = Launcher()
    with closing(GROUNDS[plan.ground](folder / "data")) as ground:
        yield _running(plan, log=log, listening=listening, backend=backend, launcher=launcher, ground=ground)


def _running(
    plan: Plan, *, log: Path, listening: socket.socket, backend: Backend, launcher: Launcher, ground: Ground
) -> Run:
    """Start the product and its clients on a ground that is there."""
    site = Site(
        ground=ground.settings,
        environment=ground.environment,
        log=str(log),
        backend=backend.url,
        listening=listening.fileno(),
        planted=plan.planted,
        lease=plan.lease,
    )
    keys = asyncio.run(_write(site, _make))
    ground.prepare()
    lay_trail(ground)
    fleet = Fleet(launcher, site, log, [Slot(role="worker") for _ in range(plan.workers)] + [Slot(role=API)])
    fleet.keep()
    journal, ending = Journal(log.with_name("journal")), threading.Event()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    clients = [
        Client(
            name=name,
            key=key,
            url=url,
            journal=journal,
            seed=plan.seed * len(keys) + place,
            most_lines=plan.most_lines,
            ending=ending,
            poisoned=plan.planted == "poison",
        )
        for place, (name, key) in enumerate(keys.items())
    ]
    return Run(
        plan=plan,
        ground=ground,
        site=site,
        backend=backend,
        fleet=fleet,
        nemesis=Nemesis(fleet, backend, ground),
        journal=journal,
        clients=clients,
        ending=ending,
    )


def _make(tx: Transaction) -> dict[str, str]:
    """Make the tables and a key for each organisation."""
    migrate(tx)
    return {name: make_key(tx, org=name, now=build_clock().now()).key for name in ORGANISATIONS}


async def _write(site: Site, statements: Statements[T]) -> T:
    """Do to the store what no process of the run does."""
    storage = Storage(settings=site.settings(), clock=build_clock())
    try:
        return await storage.database.write(statements)
    finally:
        await storage.database.close()


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the processes' log; what is no JSON is a traceback or another library's warning."""
    text = path.read_text(errors="replace").replace("}{", "}\n{")  # two threads' lines may meet
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def _figures(running: Run, trail: Trail, events: Counter[str]) -> dict[str, float]:
    """Return what was inflicted and what it did."""
    inflicted = running.nemesis.inflicted
    figures: dict[str, float] = {kind.value: sum(each.kind is kind for each in inflicted) for kind in Kind}
    figures["worker faults"] = sum(each.kind in WORKER_FAULTS for each in inflicted)
    for state in _STATES:
        figures[f"kills in {state}"] = sum(state in i.states for i in inflicted if i.kind is Kind.KILL)
    figures["slices taken over"] = trail.slices_taken_over
    figures["batches taken over"] = trail.batches_taken_over
    figures["stale writes refused"] = events["fence refused a commit"]
    figures["stale seals refused"] = events["fence refused a seal"]
    figures["outages survived"] = sum(
        any(entry.at > each.until for entry in trail.recorded)
        for each in inflicted
        if each.kind is Kind.OUTAGE and each.until is not None
    )
    for trouble, times in running.ground.bites.items():
        figures[f"met {trouble}"] = times
    figures["commits in doubt"] = events["a commit was in doubt"]
    figures["waits for the bytes"] = events["the bytes are away"]
    figures["drains that took too long"] = running.nemesis.unled
    for status, times in running.fleet.own_ends.items():
        figures[f"ended by itself with {status}"] = times
    figures["batches stuck until the next start"] = running.unstuck
    return dict(figures)


def _what_did_not_bite(running: Run, figures: dict[str, float]) -> Iterator[str]:
    """Yield what makes the run void: a fault that was armed and was never seen to bite."""
    planned = running.plan.schedule()
    for kind in Kind:
        if figures.get(kind.value, 0) < sum(fault.kind is kind for fault in planned):
            yield f"not every {kind.value} was inflicted"
    for state in _STATES:
        if not figures[f"kills in {state}"]:
            yield f"no worker was killed over a batch in {state}"
    seen = {
        "no lease was taken over": figures["slices taken over"],
        "no stale write was refused": figures["stale writes refused"] + figures["stale seals refused"],
        "not every outage was survived": figures["outages survived"] >= running.plan.outages,
        "no batch was completed, or cancelled, or expired": all(
            figures.get(end) for end in ("completed", "cancelled", "expired")
        ),
        "no line was tried again": any(
            send.wish in ("429", "500", "rst", "garbage") for send in read_sends(running.backend.log)
        ),
    }
    for trouble in running.plan.troubles:
        seen[f"{trouble} met nobody"] = figures.get(f"met {trouble}", 0)
        seen["the API never had to answer 503"] = figures.get("answers 503", 0)
    if LOST_COMMITS in running.plan.troubles:
        seen["no commit was in doubt"] = figures["commits in doubt"]
    yield from (what for what, bit in seen.items() if not bit)


def run_enclosed(plan: Plan, folder: Path) -> Verdict:
    """Do a run in namespaces of its own, and return its verdict; what it leaves behind is in the folder.

    Raises:
        RuntimeError: it broke down, with what it said.
    """
    done = enter("faults.chaos", "--folder", folder, "--plan", json.dumps(asdict(plan)))
    if done.returncode:
        raise RuntimeError(done.stderr[-8000:])
    said = json.loads(done.stdout)
    return Verdict(**{**said, "plan": Plan(**said["plan"])})


def _main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--plan", required=True, help="JSON, as of `Plan`")
    given = options.parse_args()
    loopback()
    verdict = run(Plan(**json.loads(given.plan)), given.folder)
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
