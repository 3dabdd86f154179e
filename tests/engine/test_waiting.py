"""Why a batch waits: one sentence, kept while it is true, logged when it is new."""

from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import unused_port
from structlog.testing import capture_logs

from batchmill.backends.http import HttpBackend
from batchmill.backends.wire import WireTransport
from batchmill.blobs.space import Space
from batchmill.engine.waiting import Circumstances, outage_of, why
from batchmill.spec.states import Status
from batchmill.store.batch import TRIES
from batchmill.store.model import BackendState
from batchmill.store.standing import Standing
from engine.mill import LEASE, Hand, Mill, lines
from fakeclock import settle
from volume import fill, small_volume

NEW = Standing(
    batch_id="batch_1",
    organisation_id="ours",
    status=Status.VALIDATING,
    expires_at=2,
    seq=0,
    waiting=None,
    held=False,
    put_off=False,
    stuck=False,
    model=None,
)
RUNNING = replace(NEW, status=Status.IN_PROGRESS, model="m")
CLOSING = replace(NEW, status=Status.CANCELLING)
ALL = Circumstances(ahead=2, short="the disk is full", outage="no backend serves m", any_model=False)


@pytest.mark.parametrize(
    ("standing", "circumstances", "sentence"),
    [
        (NEW, Circumstances(), None),
        (NEW, ALL, "validation waits: no backend has ever answered"),
        (NEW, replace(ALL, any_model=True), "the disk is full"),
        (NEW, Circumstances(ahead=1), "queued behind 1 batch"),
        (NEW, Circumstances(ahead=2), "queued behind 2 batches"),
        (replace(NEW, held=True), ALL, None),
        (RUNNING, ALL, "no backend serves m"),
        (RUNNING, replace(ALL, outage=None), "the disk is full"),
        (RUNNING, Circumstances(ahead=2), "queued behind 2 batches"),
        (RUNNING, Circumstances(), None),
        (replace(RUNNING, held=True), replace(ALL, outage=None), "the disk is full"),
        (replace(RUNNING, held=True), ALL, "no backend serves m"),
        (RUNNING, replace(ALL, moved=True), None),
        (CLOSING, ALL, "the disk is full"),
        (CLOSING, Circumstances(ahead=2), "queued behind 2 batches"),
        (replace(CLOSING, held=True), ALL, None),
        (replace(CLOSING, put_off=True, waiting="it failed"), ALL, "it failed"),
        (replace(CLOSING, stuck=True, put_off=True, waiting="stuck: damaged"), ALL, "stuck: damaged"),
    ],
)
def test_the_table_of_reasons(standing: Standing, circumstances: Circumstances, sentence: str | None) -> None:
    """The first reason that holds is told, and none of a batch that moves."""
    assert why(standing, circumstances) == sentence


@pytest.mark.parametrize(
    ("status", "doing"),
    [(Status.VALIDATING, "validating"), (Status.FINALIZING, "finalizing"), (Status.CANCELLING, "finalizing")],
)
def test_a_batch_that_became_stuck_by_deaths_says_so(status: Status, doing: str) -> None:
    """Whoever died over it left no sentence, so it gets one."""
    said = why(replace(NEW, status=status, stuck=True), Circumstances())
    assert said is not None
    assert said.startswith(f"stuck: {doing} failed {TRIES} times in a row: its worker died; its results are kept")


def test_the_words_for_an_outage() -> None:
    """Named are the backends that serve the model; where nobody is known to, all that are unwell."""
    well = BackendState(name="a", well=True, reason=None, since=0)
    down = BackendState(name="b", well=False, reason="refused", since=60)
    slow = BackendState(name="c", well=False, reason="503", since=0)
    states = {state.name: state for state in (well, down, slow)}
    assert outage_of("m", ["a", "b"], states) is None
    assert outage_of("m", ["new"], states) is None
    b, c = "b: refused (since 1970-01-01T00:01:00Z)", "c: 503 (since 1970-01-01T00:00:00Z)"
    assert outage_of("m", ["b"], states) == f"no backend that serves m is well: {b}"
    assert outage_of("m", [], states) == f"no backend that serves m is well: {b}; {c}"
    assert outage_of("m", [], {"a": well}) == "no backend serves m"


async def told(mill: Mill, *batch_ids: str, hand: Hand | None = None) -> list[str | None]:
    """Let a Sweeper look, and return what it says of these batches."""
    await mill.sweeper_of(hand).step()
    return [(await mill.look(batch_id)).waiting for batch_id in batch_ids]


async def test_new_batches_queue(mill: Mill) -> None:
    """Without a model validation waits and says so; with one the batches wait for each other."""
    hand = mill.hand(mill.echo())
    ids = [await mill.batch(lines(1)) for _ in range(3)]
    no_model = "validation waits: no backend has ever answered"
    assert await told(mill, *ids, hand=hand) == [no_model] * 3
    await hand.scout.step()
    assert await told(mill, *ids, hand=hand) == [None, "queued behind 1 batch", "queued behind 2 batches"]
    while await hand.validator.step():
        pass
    assert [(await mill.look(batch_id)).waiting for batch_id in ids] == [None, None, None]


async def test_a_sentence_is_logged_when_it_is_new(mill: Mill) -> None:
    """Once, with the batch, and again when the batch goes on; a Sweeper looks every five seconds."""
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(lines(1))
    sweeper = mill.sweeper_of(hand)
    with capture_logs() as logged:
        for _ in range(12):
            await sweeper.step()
            await mill.clock.advance(1)
        await hand.scout.step()
        for _ in range(6):
            await sweeper.step()
            await mill.clock.advance(1)
    said = [(entry["event"], entry["waiting"]) for entry in logged if entry.get("batch") == batch_id]
    assert said == [("waits", "validation waits: no backend has ever answered"), ("goes on", None)]


async def test_a_batch_waits_for_its_backend(mill: Mill) -> None:
    """While the only backend is away the batch says so, with its reason; it says nothing any more once lines move."""
    await mill.knows("echo")
    transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
    away = HttpBackend(url=f"http://127.0.0.1:{unused_port()}/v1", transport=transport, deadline=5)
    hand = mill.hand(away)
    batch_id = await mill.batch(lines(5))
    await hand.scout.step()
    await hand.validator.step()
    (said,) = await told(mill, batch_id, hand=hand)
    assert said is not None
    assert said.startswith(f"no backend that serves echo is well: {away.name}: ")
    assert "(since 2027-01-15T08:00:00Z)" in said
    await away.close()
    hand = mill.hand(mill.echo(latency=1000.0))
    await hand.scout.step()
    await hand.runner.step()
    await settle()
    assert await told(mill, batch_id, hand=hand) == [None]


async def test_running_batches_queue_by_their_deadline(mill: Mill) -> None:
    """Batches that nobody works on yet say how many come before them."""
    hand = mill.hand(mill.echo(latency=1000.0), window=1)
    late, soon = [await mill.batch(lines(1), window=seconds) for seconds in (7200, 3600)]
    await hand.scout.step()
    while await hand.validator.step():
        pass
    assert await told(mill, late, soon, hand=hand) == ["queued behind 1 batch", None]


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Every batch that cannot go on for want of space says so, and nothing any more when there is space."""
    with small_volume(tmp_path / "volume", mib=40) as folder:
        mill = await Mill.build(folder)
        mill.room = Space(folder=folder)
        mill.room.keep()
        hand = mill.hand(mill.echo())
        await hand.scout.step()
        ids = [await mill.batch(lines(1)) for _ in range(2)]
        ballast = fill(folder, leave=1 << 20)
        assert not await hand.validator.step()
        assert await told(mill, *ids, hand=hand) == ["the disk is full: 1 MiB are free, 2 MiB are needed"] * 2
        ballast.unlink()
        assert await mill.finish(hand, ids[1]) is Status.COMPLETED
        assert [(await mill.look(batch_id)).waiting for batch_id in ids] == [None, None]
        await mill.database.close()


async def test_a_batch_stuck_by_deaths_is_told(mill: Mill) -> None:
    """A batch whose workers died over it five times says that it is stuck."""
    await mill.knows("echo")
    batch_id = await mill.batch(lines(1))
    for _ in range(TRIES):
        assert await mill.database.write(mill.hand(mill.echo()).validator._claim) is not None
        await mill.clock.advance(LEASE + 1)
    (said,) = await told(mill, batch_id)
    assert said is not None
    assert said.startswith("stuck: validating failed 5 times in a row: its worker died")


async def test_the_sentence_names_a_backend_once(mill: Mill) -> None:
    """A backend's own words for its outage do not begin with its name again."""
    await mill.knows("echo")
    transport = WireTransport(clock=mill.clock, max_reply_bytes=1 << 20)
    away = HttpBackend(url=f"http://127.0.0.1:{unused_port()}/v1", transport=transport, deadline=5)
    hand = mill.hand(away)
    batch_id = await mill.batch(lines(5))
    await hand.accept()
    (said,) = await told(mill, batch_id, hand=hand)
    await away.close()
    assert said is not None
    assert said.count(away.name) == 1


async def test_who_has_heard_nobody_says_nothing_of_backends(mill: Mill) -> None:
    """After a restart a Sweeper that looks before any backend has answered does not say that none serves the model."""
    batch_id = await mill.batch(lines(5))
    await mill.hand(mill.echo()).accept()
    assert await told(mill, batch_id, hand=mill.hand(mill.echo())) == [None]
