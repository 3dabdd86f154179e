"""What is known of models and backends."""

import asyncio
from dataclasses import replace

from batchmill.store.database import Database, Transaction
from batchmill.store.model import BackendState, add_models, keep_models, list_backends, list_models, save_backend


async def test_a_model_is_new_once(database: Database) -> None:
    """Models are kept with the second in which they were first seen; only the new ones are returned."""
    assert await database.write(lambda tx: add_models(tx, names=["b", "a", "b"], now=1)) == ("b", "a")
    assert await database.write(lambda tx: add_models(tx, names=["a", "c"], now=2)) == ("c",)
    assert await database.read(list_models) == [("a", 1), ("b", 1), ("c", 2)]


async def test_a_backend_is_kept_as_it_is_now(database: Database) -> None:
    """The last state that was saved stands."""
    unwell = BackendState(name="x", well=False, reason="connection refused", since=1)
    well = BackendState(name="x", well=True, reason=None, since=2)
    await database.write(lambda tx: save_backend(tx, unwell))
    assert await database.read(list_backends) == [unwell]
    await database.write(lambda tx: save_backend(tx, well))
    assert await database.read(list_backends) == [well]


async def test_workers_that_start_together_learn_the_same(database: Database) -> None:
    """Several workers that save the same new backend and models at the same time all succeed."""

    def statements(tx: Transaction) -> None:
        add_models(tx, names=["m"], now=1)
        save_backend(tx, BackendState(name="x", well=True, reason=None, since=1))

    await asyncio.gather(*(database.write(statements) for _ in range(6)))
    assert await database.read(list_models) == [("m", 1)]
    assert len(await database.read(list_backends)) == 1


async def test_a_backend_keeps_the_models_that_it_told_last(database: Database) -> None:
    """None before it told any; of a backend without a row nothing is kept."""
    state = BackendState(name="b", well=True, reason=None, since=1)
    await database.write(lambda tx: save_backend(tx, state))
    for models in ((), ("m", "n/é"), ("n/é",)):
        await database.write(lambda tx, m=models: keep_models(tx, name="b", models=m))  # type: ignore[misc] - bound early
        assert await database.read(list_backends) == [replace(state, models=models)]
    await database.write(lambda tx: keep_models(tx, name="c", models=["m"]))
    assert [backend.name for backend in await database.read(list_backends)] == ["b"]
