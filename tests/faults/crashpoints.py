"""Holds a bare process at its k-th system call of each kind and kills it, or cuts the power of its disk; then looks.

    python -m faults.crashpoints --filesystem ext4 xfs --mode kill power --records points.jsonl

runs in the namespaces of `sandbox.enter`. This process imports everything once and forks: a point takes a fraction of
a second. A first run, only watched, says which calls an operation makes on its disk; then each of them is a point, and
for each kind one more run must go untouched.
"""

import argparse
import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from faults.bare import OPERATIONS, Facts, NotAcknowledged, Operation, open_store, recover, run_alone, season
from faults.careless import CARELESS, after_answer
from faults.sandbox import FILESYSTEMS, Disk, fast_folder, loopback

KINDS = (
    *("write", "pwrite64", "pwritev", "fsync", "fdatasync", "sync_file_range", "openat", "ftruncate", "fallocate"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat"),
)
_HELD = 600_000_000  # microseconds: longer than anything here lasts
_PATIENCE = 20  # seconds for one process
_CALL = re.compile(r"^(?:\[pid +\d+\] )?(\w+)\(", re.MULTILINE)


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


@dataclass(slots=True)
class Bare:
    """A forked process that does one operation: it says `ready`, waits for a byte, and says what it acknowledges."""

    pid: int
    said: int
    go: int

    @classmethod
    def fork(cls, work: Callable[[Callable[[Any], None], Callable[[], None]], None]) -> "Bare":
        """Fork; `work` is given a way to say something, and one to wait for the start."""
        said_r, said_w = os.pipe()
        go_r, go_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(_PATIENCE)
                work(lambda value: _say(said_w, value), lambda: _wait_for_byte(go_r))
                code = 0
            except BaseException as fault:  # noqa: BLE001 - this process ends here, and says why
                _say(said_w, {"fault": f"{type(fault).__name__}: {fault} at {_place(fault)}"})
            finally:
                os._exit(code)
        os.close(said_w)
        os.close(go_r)
        return cls(pid=pid, said=said_r, go=go_w)

    def line(self) -> Any:  # noqa: ANN401 - what it said
        """Return the next thing that it says."""
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(self.said, 1)
            assert byte, "it died before it said anything"
            text += byte
        return json.loads(text)

    def start(self) -> None:
        """Let it begin."""
        os.write(self.go, b".")

    def kill(self) -> None:
        """End it, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> list[Any]:
        """Wait for its end and return what else it said; whoever traces it must have gone."""
        os.waitpid(self.pid, 0)
        with os.fdopen(self.said, "rb") as said:
            rest = said.read()
        os.close(self.go)
        return [json.loads(line) for line in rest.splitlines()]


def _say(descriptor: int, value: object) -> None:
    os.write(descriptor, json.dumps(value).encode() + b"\n")


def _wait_for_byte(descriptor: int) -> None:
    os.read(descriptor, 1)


def _place(fault: BaseException) -> str:
    frame = fault.__traceback__
    places = []
    while frame is not None:
        places.append(f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}")
        frame = frame.tb_next
    return " > ".join(places[-3:])


def act(folder: Path, operation: Operation, facts: Facts, careless: str | None) -> Callable[..., None]:
    """Return the work of a bare process: the operation, its acknowledgement, what follows, and a clean end."""

    async def work(say: Callable[[Any], None], wait: Callable[[], None]) -> None:
        mill = await open_store(folder)
        if operation.seasoned:
            await season(mill)
        if careless is not None:
            CARELESS[careless]()
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


class Traced:
    """strace on a bare process; it is held where the tampering says so, until it is killed."""

    def __init__(self, bare: Bare, *, kinds: Sequence[str], inject: str | None = None) -> None:
        command = ["strace", "-f", "-y", "-s", "0", "-p", str(bare.pid), "-e", f"trace={','.join(f'?{k}' for k in kinds)}"]
        if inject is not None:
            command += ["-e", f"inject={inject}"]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._strace.stderr is not None
        self._output = self._strace.stderr
        assert b"attached" in self._output.readline(), "strace cannot attach"
        self.text = ""

    def until(self, k: int | None) -> str | None:
        """Read on until the k-th call has been entered, and return it; None if the process ends before."""
        while data := self._read():
            self.text += data.decode(errors="replace")
            entered = [match.start() for match in _CALL.finditer(self.text)]
            if k is not None and len(entered) >= k:
                return self.text[entered[k - 1] :].splitlines()[0]
        return None

    def _read(self) -> bytes:
        if not select.select([self._output], [], [], _PATIENCE)[0]:
            raise TimeoutError(f"strace has said nothing for {_PATIENCE} s, and last: {self.text[-500:]}")
        return os.read(self._output.fileno(), 1 << 16)

    def end(self) -> None:
        """End strace, once the process is killed: it would sleep on, and the dead would stay its own."""
        self._strace.kill()
        self._strace.wait()
        self._output.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A disk on which an operation can begin, and what the operation must know of it."""

    disk: Disk
    facts: Facts


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
            if found := _CALL.match(line):
                calls.setdefault(found[1], []).append(line if str(self._disk.mount) in line else "")
        return {kind: lines for kind, lines in calls.items() if any(lines)}

    def points(self, stride: int) -> Iterator[tuple[str, int]]:
        """Yield kind and k of every n-th call on the disk, and for each kind one k that is never reached."""
        for kind, lines in self.calls.items():
            yield from [(kind, k) for k, line in enumerate(lines, 1) if line][::stride]
            yield kind, len(lines) + 1

    def try_point(self, kind: str, k: int, mode: str) -> Point:
        """Hold the process there, kill it or cut the power, and look."""
        said: list[Any]
        with self._begun(kinds=[kind], inject=f"{kind}:delay_enter={_HELD}:when={k}", cut=mode == "power") as (bare, traced):
            call = traced.until(k)
            said = bare
        acknowledged = next((line["acknowledged"] for line in said if "acknowledged" in line), None)
        odd = [line for line in said if "acknowledged" not in line]
        with self._disk.mounted() as place:
            violation = f"the process itself: {odd}" if odd else self._look(place, acknowledged)
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
    def _begun(self, *, kinds: Sequence[str], inject: str | None = None, cut: bool = False) -> Iterator[tuple[list[Any], Traced]]:
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
        mine = [point for point in points if point.operation == name]
        reasons += [
            f"{name}: held at no {kind}" for kind in kinds if not any(p.kind == kind and p.call for p in mine)
        ]
        reasons += [f"{name}: {p.kind} {p.k} was reached, and is beyond the last" for p in mine if p.call and p.k > len(kinds[p.kind])]
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
                calls[name] = trial.calls
                for mode in arguments.mode:
                    for kind, k in trial.points(arguments.stride):
                        points.append(trial.try_point(kind, k, mode))
                        if points[-1].violation and arguments.first:
                            return _report(points, [], time.monotonic() - began, arguments.records)
        void += void_reasons([p for p in points if p.filesystem == filesystem], calls)
    return _report(points, void, time.monotonic() - began, arguments.records)


def _report(points: Sequence[Point], void: Sequence[str], seconds: float, records: Path | None) -> int:
    if records is not None:
        with records.open("a") as file:
            file.writelines(json.dumps(asdict(point)) + "\n" for point in points)
    bad = [point for point in points if point.violation]
    for point in bad[:20]:
        print(f"VIOLATION {point.operation} {point.kind} {point.k} ({point.mode}, {point.filesystem}"
              f"{', acknowledged' if point.acknowledged else ''}) {point.call}: {point.violation}")
    for reason in void:
        print(f"VOID {reason}")
    held = Counter(f"{p.mode if p.mode == 'kill' else 'power cut'}, {p.filesystem}" for p in points if p.call)
    untouched = sum(point.call is None for point in points)
    totals = ", ".join(f"{count} ({where})" for where, count in sorted(held.items()))
    after = sum(point.acknowledged for point in points)
    print(f"crash points: {totals}; {untouched} untouched; {after} after the acknowledgement; "
          f"{len(bad)} violations; {seconds:.0f} s")
    return 1 if bad else 3 if void else 0


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filesystem", nargs="+", default=["ext4"], choices=FILESYSTEMS)
    parser.add_argument("--mode", nargs="+", default=["kill", "power"], choices=["kill", "power"])
    parser.add_argument("--operation", nargs="+", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--stride", type=int, default=1, help="try every n-th point of each kind only")
    parser.add_argument("--careless", choices=list(CARELESS), help="plant this bug")
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    parser.add_argument("--records", type=Path, help="append a line of JSON for each point to this file")
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=lambda *_: structlog.PrintLogger(open(os.devnull, "w")))
    loopback()
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
