"""Seeds of the simulator: whole workers in virtual time, killed, stopped and starved at every await there is."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from batchmill.engine.feed import Feed
from batchmill.ledger.ledger import Ledger
from batchmill.ledger.merge import merge_results
from batchmill.spec.states import STAMP, Status, next_status
from batchmill.store.database import Transaction
from batchmill.store.slice import Slice, claim_slices
from batchmill.store.steer import courses_of
from batchmill.store.tables import batch, slice_, worker
from faults.simulator import World, a_world, run_in_processes, run_seed

SEEDS = range(300)  # CI's; tens of thousands are run by hand, see simulator.py
PROCESSES = 2

# Seeds that failed once, and what was wrong then.
REGRESSIONS = {
    3: "with on_unknown_outcome = fail a Runner with a free slot and nothing new to send stepped for ever",
    69: "the same, over lines that no lane may send",
    40: "with on_unknown_outcome = fail a line went although the row that was to say so had found no room",
}

HAPPENED = (
    "kill",
    "stop",
    "goes on",
    "term",
    "exit",
    "long delay",
    "lost answer",
    "disk full",
    "clock back",
    "clock forward",
    "cancel",
    "pause",
    "resume",
    "window",
    "priority",
    "delete",
    "backend unreachable",
    "backend reset",
    "backend timeout",
    "backend garbled",
    "backend 429",
    "backend 502",
    "backend 503",
    *(f"kill while {status}" for status in Status),
    *(f"was {status}" for status in Status),
)


@pytest.fixture
def world() -> Iterator[World]:
    """A world to run seeds in."""
    with a_world() as made:
        yield made


def test_no_seed_finds_a_violation_and_every_fault_is_met() -> None:
    """Over CI's seeds all invariants hold, and no kind of fault and no state is missing."""
    outcomes = run_in_processes(SEEDS, PROCESSES)
    assert {outcome.seed: outcome.violation for outcome in outcomes if outcome.violation is not None} == {}
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    assert [kind for kind in HAPPENED if not counts[kind]] == []


@pytest.mark.parametrize("seed", REGRESSIONS, ids=str)
def test_what_was_found_stays_away(world: World, seed: int) -> None:
    """A seed that failed once passes."""
    assert run_seed(world, seed).violation is None


def test_the_same_seed_is_the_same_run(world: World) -> None:
    """A seed's events are the same in every run and in every process."""
    seeds = range(5)
    here = [run_seed(world, seed).digest for seed in seeds]
    assert here == [run_seed(world, seed).digest for seed in seeds]
    assert here == [outcome.digest for outcome in run_in_processes(seeds, 1)]
    assert len(set(here)) == len(seeds)


def _without_fence(tx: Transaction, *, batch_id: str, ordinal: int, epoch: int, done: bytes, closed: bool) -> bool:  # noqa: ARG001 - the bug
    values: dict[str, object] = {"done": done}
    if closed:
        values |= {"open": False, "owner": None, "lease_until": None}
    named = update(slice_).where(slice_.c.batch_id == batch_id, slice_.c.ordinal == ordinal)
    return tx.connection.execute(named.values(values)).rowcount == 1


def _claim_with_old_epoch(tx: Transaction, **claim: Any) -> list[tuple[Slice, bool]]:  # noqa: ANN401 - as `claim_slices`
    claimed = claim_slices(tx, **claim)
    for held, _ in claimed:
        named = update(slice_).where(slice_.c.batch_id == held.batch_id, slice_.c.ordinal == held.ordinal)
        tx.connection.execute(named.values(epoch=0))
    return [(replace(held, epoch=0), taken_over) for held, taken_over in claimed]


def _claim_with_no_bitmap(tx: Transaction, **claim: Any) -> list[tuple[Slice, bool]]:  # noqa: ANN401 - as `claim_slices`
    return [(replace(held, done=bytes(len(held.done))), over) for held, over in claim_slices(tx, **claim)]


def _renew_only_itself(tx: Transaction, *, worker_id: str, lease: float) -> bool:
    named = update(worker).where(worker.c.id == worker_id)
    return tx.connection.execute(named.values(lease_until=tx.lease_now + lease)).rowcount == 1


def _advance_whatever_it_is(tx: Transaction, *, batch_id: str, status: Any, event: Any, now: int, **more: Any) -> bool:  # noqa: ANN401 - as `advance`
    target = next_status(status, event)
    assert target is not None
    values = {**(more.get("values") or {}), "status": target.value, STAMP[target]: now}
    return tx.connection.execute(update(batch).where(batch.c.id == batch_id).values(values)).rowcount == 1


def _drop_results_of_cancelled(*, slices: Any, segments: Any, **more: Any) -> Any:  # noqa: ANN401 - as `merge_results`
    if more["batch"].object.status is Status.CANCELLING:
        slices, segments = [replace(held, done=bytes(len(held.done))) for held in slices], ()
    return merge_results(slices=slices, segments=segments, **more)


def _commit_again(true_commit: Callable[..., Any]) -> Callable[..., Any]:
    async def commit(ledger: Ledger, portions: Any) -> Any:  # noqa: ANN401 - as `Ledger.commit`
        try:
            return await true_commit(ledger, portions)
        except ConnectionError:
            return await true_commit(ledger, portions)

    return commit


def _send_after_the_window(true_next: Callable[..., Any]) -> Callable[..., Any]:
    return lambda feed, lane, *, wall, **of: true_next(feed, lane, wall=wall - 3.0, **of)


def _never_paused(tx: Transaction, *, batch_ids: Any) -> Any:  # noqa: ANN401 - as `courses_of`
    return {name: replace(course, paused=False) for name, course in courses_of(tx, batch_ids=batch_ids).items()}


# What our own hands might have got wrong, each with where it is planted.
PLANTED = {
    "a commit without its fence": ("batchmill.ledger.ledger.record_done", _without_fence),
    "a claim that raises no epoch": ("batchmill.ledger.ledger.claim_slices", _claim_with_old_epoch),
    "a claim that forgets what is done": ("batchmill.ledger.ledger.claim_slices", _claim_with_no_bitmap),
    "leases that are not renewed": ("batchmill.engine.worker.renew_leases", _renew_only_itself),
    "a Finalizer that takes no Slices": ("batchmill.engine.finalizer.fence_slices", lambda *_, **__: None),
    "a status without an expected one": ("batchmill.engine.finalizer.advance", _advance_whatever_it_is),
    "results dropped on cancel": ("batchmill.engine.finalizer.merge_results", _drop_results_of_cancelled),
    "an unknown commit tried again": ("batchmill.ledger.ledger.Ledger.commit", _commit_again(Ledger.commit)),
    "sends after the window": ("batchmill.engine.feed.Feed.next", _send_after_the_window(Feed.next)),
    "a pause that no worker hears of": ("batchmill.engine.watch.courses_of", _never_paused),
    "a batch without a reference": ("faults.client.refer", lambda *_, **__: None),
}

# The worker's own look at its lease stands before these walls, and hides nearly always that they are gone.
BEHIND_THE_LEASE = ("a commit without its fence", "a claim that raises no epoch", "a Finalizer that takes no Slices")


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(world: World, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    """Each bug is found within CI's seeds."""
    where, planted = PLANTED[bug]
    monkeypatch.setattr(where, planted)
    if bug in BEHIND_THE_LEASE:
        monkeypatch.setattr("batchmill.engine.lease.Lease.left", 3600.0)
    assert any(run_seed(world, seed).violation is not None for seed in SEEDS)
