"""Holds a bare process at its k-th system call of each kind and kills it, or cuts the power of its disk; then looks.

    python -m faults.crashpoints --enter --filesystem ext4 xfs --mode kill power eio --records points.jsonl

`--enter` gives it namespaces of its own first; the tests do that by themselves. This process imports everything once
and forks: a point takes a fraction of a second. A first run, only watched, says which calls an operation makes on its
disk; then each of them is a point, and for each kind one more run must go untouched.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from faults.bare import OPERATIONS, Facts, NotAcknowledged, Operation, open_store, recover, run_alone, season
from faults.careless import CARELESS, after_answer
from faults.held import CALL, Bare, Traced
from faults.sandbox import FILESYSTEMS, Disk, enter, fast_folder, loopback

KINDS = (  # the most telling ones first
    *("fdatasync", "fsync", "sync_file_range", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
    *("mkdir", "mkdirat", "link", "linkat", "ftruncate", "fallocate", "write", "pwritev", "pwrite64", "openat"),
)
SYNCS = ("fsync", "fdatasync")
_MANY = ("pwrite64", "openat")  # the kinds of which there are dozens
_MODES = {"kill": "kill", "power": "power cut", "eio": "failed sync"}
_HELD = 600_000_000  # microseconds: longer than anything here lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a process was held (the k-th call of a kind; `call` is None if it was not), and what was found then."""

    operation: str
    kind: str
    k: int
    mode: str
    filesystem: str
    careless: str | None
    call: str | None
    acknowledged: bool
    violation: str | None


def act(folder: Path, operation: Operation, facts: Facts, careless: str | None) -> Callable[..., None]:
    """Return the work of a bare process: the operation, its acknowledgement, what follows, and a clean end."""

    async def work(say: Callable[[Any], None], wait: Callable[[], None]) -> None:
        if careless is not None:
            CARELESS[careless]()
        mill = await open_store(folder)
        if operation.seasoned:
            await season(mill)
            after_answer()
        say("ready")
        wait()
        try:
            say({"acknowledged": await operation.act(mill, facts)})
        except NotAcknowledged as answer:
            say({"refused": answer.args[0]})
        after_answer()
        if operation.rest is not None:
            await operation.rest(mill)
        await mill.database.close()

    return lambda say, wait: run_alone(work(say, wait))


class Trial:
    """One operation on one filesystem: its template, and the points tried on copies of it."""

    def __init__(self, folder: Path, *, name: str, filesystem: str, careless: str | None) -> None:
        self.name = name
        self.filesystem = filesystem
        self._operation = OPERATIONS[name]
        self._careless = careless
        self._template = Disk(filesystem=filesystem, image=folder / "template", mount=folder / "mount")
        self._disk = Disk(filesystem=filesystem, image=folder / "disk", mount=folder / "mount")
        self._template.make()
        with self._template.mounted() as place:
            self._facts = run_alone(self._prepare(place))
        self.calls = self._watch()

    async def _prepare(self, place: Path) -> Facts:
        mill = await open_store(place)
        facts = await self._operation.prepare(mill)
        await mill.database.close()
        return facts

    def _watch(self) -> dict[str, list[str]]:
        """Run untouched; return the calls of each kind in their order, those elsewhere than on the disk as ''."""
        with self._begun(kinds=KINDS) as (_, traced):
            traced.until(None)
        assert "[pid" not in traced.text, "a second thread: its calls would be counted by themselves"
        calls: dict[str, list[str]] = {}
        for line in traced.text.splitlines():
            if found := CALL.match(line):
                calls.setdefault(found[1], []).append(line if str(self._disk.mount) in line else "")
        return {kind: calls[kind] for kind in KINDS if any(calls.get(kind, ()))}

    def counts(self) -> str:
        """Say how many calls of each kind the operation makes on its disk."""
        return ", ".join(f"{sum(map(bool, lines))} {kind}" for kind, lines in self.calls.items())

    def points(self, mode: str, stride: int) -> Iterator[Point]:
        """Try the calls on the disk (of the frequent kinds every n-th), and for each kind one that is never reached."""
        for kind, lines in self.calls.items():
            there = [k for k, line in enumerate(lines, 1) if line]
            there = there[::stride] if kind in _MANY else there
            if mode != "eio":
                yield from (self.hold(kind, k, mode) for k in [*there, len(lines) + 1])
            elif kind in SYNCS:
                yield from (self.fail_sync(kind, k) for k in there)

    def hold(self, kind: str, k: int, mode: str) -> Point:
        """Hold the process at its k-th call of a kind and kill it, or cut the power and kill it."""
        inject = f"{kind}:delay_enter={_HELD}:when={k}"
        with self._begun(kinds=[kind], inject=inject, cut=mode == "power") as (said, traced):
            call = traced.until(k)
        point = self._point(kind, k, mode, call, said)
        odd = [line for line in said if "acknowledged" not in line]
        return replace(point, violation=f"the process itself failed: {odd}") if odd else point

    def fail_sync(self, kind: str, k: int) -> Point:
        """Let the k-th sync fail with EIO, and cut the power when the process has ended.

        The bytes of a blob are never synced again: the kernel may have dropped them, and report success (reliability,
        finding 4). SQLite does sync its log again, for frames that it has written anew: the power cut shows it.
        """
        with self._begun(kinds=SYNCS, inject=f"{kind}:error=EIO:when={k}", cut=True) as (said, traced):
            traced.until(None)
        text = traced.text[traced.text.rfind("\n", 0, traced.text.index("(INJECTED)")) + 1 :]
        failed, *later = text.splitlines()
        path = failed[failed.index("<") : failed.index(">") + 1]
        again = [line for line in later if path in line and "/blobs/" in path]
        point = self._point(kind, k, "eio", failed, said)
        answers = [line.get("refused", 0) for line in said if "acknowledged" not in line and "fault" not in line]
        if again:
            return replace(point, violation=f"synced again after it had failed: {again[0]}")
        if any(status < 500 for status in answers):
            return replace(point, violation=f"answered as the client's fault: {answers}")
        return point

    def _point(self, kind: str, k: int, mode: str, call: str | None, said: list[Any]) -> Point:
        """Look at what the process has left behind."""
        acknowledged = next((line["acknowledged"] for line in said if "acknowledged" in line), None)
        with self._disk.mounted() as place:
            violation = self._look(place, acknowledged)
        return Point(
            operation=self.name,
            kind=kind,
            k=k,
            mode=mode,
            filesystem=self.filesystem,
            careless=self._careless,
            call=None if call is None else call.replace(str(self._disk.mount), ""),
            acknowledged=acknowledged is not None,
            violation=violation,
        )

    @contextmanager
    def _begun(
        self, *, kinds: Sequence[str], inject: str | None = None, cut: bool = False
    ) -> Iterator[tuple[list[Any], Traced]]:
        """Run the operation on a fresh copy, traced; at the end it is cut off if so told, and killed.

        The list holds what it said once this is over.
        """
        said: list[Any] = []
        self._disk.copy_of(self._template)
        with self._disk.mounted() as place:
            bare = Bare.fork(act(place, self._operation, self._facts, self._careless))
            assert bare.line() == "ready"
            traced = Traced(bare, kinds=kinds, inject=inject)
            bare.start()
            try:
                yield said, traced
                if cut:
                    self._disk.cut()
            finally:
                bare.kill()
                traced.end()
                said += bare.reap()

    def _look(self, place: Path, acknowledged: Facts | None) -> str | None:
        """Open the store in a fresh process, recover and check; return what is wrong."""
        looking = Bare.fork(
            lambda say, _: say({"sound": run_alone(recover(place, self._operation, self._facts, acknowledged))})
        )
        answer = looking.line()
        looking.reap()
        return None if "sound" in answer else str(answer["fault"])


def void_reasons(points: Sequence[Point], calls: dict[str, dict[str, list[str]]]) -> list[str]:
    """Say what a run did not try although it should have: such a run proves nothing."""
    reasons = []
    for name, kinds in calls.items():
        mine = [point for point in points if point.operation == name and point.mode != "eio"]
        if not mine:
            continue
        reasons += [f"{name}: held at no {kind}" for kind in kinds if not any(p.kind == kind and p.call for p in mine)]
        reasons += [
            f"{name}: {p.kind} {p.k} was reached, and is beyond the last"
            for p in mine
            if p.call and p.k > len(kinds[p.kind])
        ]
        cut = {point.acknowledged for point in mine if point.mode == "power"}
        if cut and cut != {True, False}:
            reasons.append(f"{name}: the power was not cut both before and after the acknowledgement")
    return reasons


def run(arguments: argparse.Namespace) -> int:
    """Try the points asked for; print the totals; 0 if nothing is violated, 1 if something is, 3 if the run is void."""
    points: list[Point] = []
    void: list[str] = []
    began = time.monotonic()
    for filesystem in arguments.filesystem:
        calls: dict[str, dict[str, list[str]]] = {}
        for name in arguments.operation:
            with fast_folder() as folder:
                trial = Trial(folder, name=name, filesystem=filesystem, careless=arguments.careless)
                print(f"{name} on {filesystem}: {trial.counts()}", file=sys.stderr, flush=True)  # noqa: T201 - it lasts
                calls[name] = trial.calls
                for mode in arguments.mode:
                    for point in trial.points(mode, arguments.stride):
                        points.append(point)
                        if point.violation and arguments.first:
                            return _report(points, [], time.monotonic() - began, arguments.records)
        void += void_reasons([p for p in points if p.filesystem == filesystem], calls)
    return _report(points, void, time.monotonic() - began, arguments.records)


def _report(points: Sequence[Point], void: Sequence[str], seconds: float, records: Path | None) -> int:
    if records is not None:
        with records.open("a") as file:
            file.writelines(json.dumps(asdict(point)) + "\n" for point in points)
    bad = [point for point in points if point.violation]
    held = Counter(f"{_MODES[p.mode]}, {p.filesystem}" for p in points if p.call)
    totals = ", ".join(f"{count} ({where})" for where, count in sorted(held.items()))
    untouched = sum(point.call is None for point in points)
    after = sum(point.acknowledged for point in points)
    lines = [f"VIOLATION {point}" for point in bad[:20]]
    lines += [f"VOID {reason}" for reason in void]
    figures = f"{untouched} untouched; {after} after the acknowledgement; {len(bad)} violations; {seconds:.0f} s"
    print("\n".join([*lines, f"crash points: {totals}; {figures}"]))  # noqa: T201 - the report is what this is run for
    return 1 if bad else 3 if void else 0


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filesystem", nargs="+", default=["ext4"], choices=FILESYSTEMS)
    parser.add_argument("--mode", nargs="+", default=["kill", "power"], choices=list(_MODES))
    parser.add_argument("--operation", nargs="+", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--stride", type=int, default=1, help="of the frequent kinds, try every n-th only")
    parser.add_argument("--careless", choices=list(CARELESS), help="plant this bug")
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    parser.add_argument("--records", type=Path, help="append a line of JSON for each point to this file")
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # what the loops say is not for the report
    parser.add_argument("--enter", action="store_true", help="run in namespaces of its own")
    arguments = parser.parse_args()
    if arguments.enter:
        sys.exit(
            enter("faults.crashpoints", *(word for word in sys.argv[1:] if word != "--enter"), quiet=False).returncode
        )
    loopback()
    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
