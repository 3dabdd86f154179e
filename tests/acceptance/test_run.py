"""`batchmill run` against the witness: killed, interrupted, started again, and never a recorded line sent twice.

It keeps its state in SQLite beside its output, wherever a server keeps its own.
"""

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import OperationalError

import pytest

from acceptance.lines import InputLine, joined, odd_lines
from acceptance.serving import Processes, Running, Witness, query, until
from storage import on_one_machine
from witness import answer

pytestmark = on_one_machine

_PROMPT = 60.0
_WINDOW = 8
_GROUP = 1_024  # results of one group commit (design, row 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder with an input, and the command that is given again and again."""

    processes: Processes
    folder: Path
    witness: Witness
    lines: list[InputLine]

    @property
    def input(self) -> Path:
        """The input."""
        return self.folder / "in.jsonl"

    @property
    def output(self) -> Path:
        """The output."""
        return self.folder / "out.jsonl"

    @property
    def state(self) -> Path:
        """The data directory of the run."""
        return self.folder / "out.jsonl.run"

    @property
    def command(self) -> list[object]:
        """The command."""
        return ["run", self.input, "-o", self.output, "--backend", self.witness.url, "--window", _WINDOW]

    def start(self, *more: object) -> Running:
        """Start the command."""
        return self.processes.start(*self.command, *more)

    def finish(self, *more: object) -> tuple[int, str]:
        """Run the command to its end; return its exit code and what it said."""
        ended = self.processes.batchmill(*self.command, *more)
        assert ended.out == ""
        return ended.code, ended.err

    def recorded(self) -> frozenset[int]:
        """Return the lines, counted from 0, whose result is durable."""
        if not (self.state / "batchmill.sqlite3").exists():
            return frozenset()
        try:
            rows = query(self.state, "SELECT first, lines, done FROM slice")
        except OperationalError:  # the tables are being made
            return frozenset()
        return frozenset(first + i for first, lines, done in rows for i in range(lines) if done[i >> 3] >> (i & 7) & 1)

    def check_output(self) -> None:
        """Every line stands once, in the order of the input, with its custom_id and its reply byte for byte."""
        found = self.output.read_bytes().splitlines(keepends=True)
        assert len(found) == len(self.lines)
        for line, text in zip(self.lines, found, strict=True):
            assert b',"custom_id":%s,"response":{"status_code":200,"request_id":"' % line.custom_id in text
            assert text.endswith(b',"body":%s},"error":null}\n' % answer(line.body))
        assert not (self.folder / "out.errors.jsonl").exists()


@pytest.fixture
def place(processes: Processes, tmp_path: Path) -> Place:
    """A place with 3,000 odd lines and a witness that takes 5 ms for each."""
    lines = odd_lines(3_000)
    witness = processes.witness(log=tmp_path / "witness.log", latency_ms=5)
    place = Place(processes=processes, folder=tmp_path, witness=witness, lines=lines)
    place.input.write_bytes(joined(lines))
    return place


def test_a_run_that_is_killed_goes_on_and_sends_no_recorded_line_again(place: Place) -> None:
    """Two kill -9 in the middle lose nothing and send again what was in flight or in an open group only."""
    kills: list[tuple[frozenset[int], int]] = []
    for share in (0.2, 0.6):
        run = place.start()
        until(lambda share=share: len(place.recorded()) >= share * len(place.lines), _PROMPT)
        run.kill_everything()
        assert not place.output.exists()
        kills.append((place.recorded(), place.witness.log.stat().st_size))
    assert all(0 < len(recorded) < len(place.lines) for recorded, _ in kills)
    code, said = place.finish()
    assert code == 0
    assert said.endswith(f"Finished: 3,000 of 3,000 lines in {place.output}.\n")
    place.check_output()

    log = place.witness.log.read_bytes()
    for recorded, logged in kills:
        after = Counter(entry.split()[3].decode() for entry in log[logged:].splitlines() if entry.startswith(b"start"))
        again = [number for number in recorded if after[place.lines[number].digest]]
        assert not again, f"recorded before a kill, sent after it: {again[:10]}"
    starts = Counter(place.witness.starts())
    assert set(starts) == {line.digest for line in place.lines}
    assert starts.total() - len(place.lines) <= len(kills) * (_WINDOW + _GROUP)

    code, said = place.finish()
    assert code == 0
    assert said.endswith(f"Finished before: 3,000 of 3,000 lines in {place.output}. --again starts over.\n")
    assert Counter(place.witness.starts()) == starts


def test_ctrl_c_ends_with_130_and_sends_nothing_twice(place: Place) -> None:
    """The first Ctrl-C lets open requests end and be recorded, so that all lines are sent exactly once."""
    run = place.start()
    until(lambda: len(place.recorded()) >= 300, _PROMPT)
    assert run.stop(signal.SIGINT) == 130
    said = run.err.read_text()
    assert "Stopping: open requests have 30 s to end. A second signal ends at once.\n" in said
    assert said.endswith("Stopped. The same command goes on from what is recorded.\n")
    assert not place.output.exists()
    assert place.finish()[0] == 0
    place.check_output()
    assert Counter(place.witness.starts()) == Counter(line.digest for line in place.lines)


@pytest.fixture
def stuck(processes: Processes, tmp_path: Path) -> Place:
    """A place with five lines and a witness that never answers one."""
    witness = processes.witness(log=tmp_path / "witness.log", latency_ms=600_000)
    place = Place(processes=processes, folder=tmp_path, witness=witness, lines=odd_lines(5))
    place.input.write_bytes(joined(place.lines))
    return place


def test_a_second_signal_ends_at_once(stuck: Place) -> None:
    """A request that takes for ever is not waited for after the second Ctrl-C."""
    run = stuck.start()
    until(lambda: len(stuck.witness.starts()) == 5, _PROMPT)
    run.process.send_signal(signal.SIGTERM)
    until(lambda: "Stopping" in run.err.read_text(), _PROMPT)
    assert run.stop(signal.SIGTERM, seconds=5) == 130
    until(lambda: not run.alive(), 5)


def test_a_second_run_of_the_same_output_is_refused(stuck: Place) -> None:
    """While one runs, the same command ends with 4, --again too; another output of the same input is fine."""
    run = stuck.start()
    until(lambda: len(stuck.witness.starts()) == 5, _PROMPT)
    refused = (4, f"Another `batchmill run` is working on {stuck.output}.\n")
    assert stuck.finish() == refused
    assert stuck.finish("--again") == refused
    other = stuck.folder / "other.jsonl"
    assert stuck.processes.batchmill("run", stuck.input, "-o", other, "--backend", "echo:#witness").code == 0
    assert len(other.read_bytes().splitlines()) == 5
    assert run.process.poll() is None
    assert query(stuck.state, "SELECT status, total FROM batch") == [("in_progress", 5)]


def test_a_changed_input_is_refused_until_it_is_put_back_or_started_over(place: Place) -> None:
    """Lines of two inputs never mix; a mere touch, or the old bytes put back, go on."""
    run = place.start()
    until(lambda: len(place.recorded()) >= 100, _PROMPT)
    run.kill_everything()
    old = place.input.read_bytes()
    place.input.write_bytes(old + odd_lines(3_001)[-1].text)
    code, said = place.finish()
    assert code == 2
    assert said.startswith("reading the input\nThe input ")
    assert "has changed since this run began. Put it back as it was" in said
    assert said.endswith("or start over with --again.\n")
    place.input.write_bytes(old)
    assert place.finish()[0] == 0
    place.check_output()


def test_an_input_that_changes_during_the_run_stops_it(place: Place) -> None:
    """Nothing is sent that was read after the change; the old bytes put back go on, and so does a mere touch."""
    old = place.input.read_bytes()
    run = place.start()
    until(lambda: len(place.recorded()) >= 100, _PROMPT)
    os.utime(place.input)
    recorded = len(place.recorded())
    until(lambda: len(place.recorded()) >= recorded + 300, _PROMPT)
    with place.input.open("r+b") as stream:
        stream.seek(len(old) // 2)
        stream.write(b"overwritten")
    assert run.process.wait(timeout=_PROMPT) == 2
    assert "has changed since this run began." in run.err.read_text()
    assert not place.output.exists()
    place.input.write_bytes(old)
    assert place.finish()[0] == 0
    place.check_output()
    assert set(place.witness.starts()) == {line.digest for line in place.lines}


def test_again_starts_over(place: Place) -> None:
    """--again forgets what was recorded and written, and sends every line of the input as it is now."""
    place.input.write_bytes(joined(place.lines[:50]))
    assert place.finish()[0] == 0
    place.input.write_bytes(joined(place.lines[50:80]))
    assert place.finish()[0] == 2
    code, said = place.finish("--again")
    assert code == 0
    assert f"Finished: 30 of 30 lines in {place.output}." in said
    assert place.output.read_bytes().count(b"\n") == 30
    assert Counter(place.witness.starts()) == Counter(line.digest for line in place.lines[:80])


def test_a_backend_that_is_away_is_waited_for(place: Place) -> None:
    """With the backend down at the start the run says why it waits, and goes on by itself once it is there."""
    port = place.witness.port
    place.witness.kill_everything()
    place.input.write_bytes(joined(place.lines[:50]))
    run = place.start()
    until(lambda: "waits: " in run.err.read_text(), _PROMPT)
    assert run.process.poll() is None
    place.processes.witness(log=place.witness.log, port=port)
    assert run.process.wait(timeout=_PROMPT) == 0
    assert place.output.read_bytes().count(b"\n") == 50
