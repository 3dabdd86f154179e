"""Configured models in a batch: aliases, models for live calls only."""

import json
from dataclasses import replace

import pytest

from batchmill.spec.limits import KIMI
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.states import Status
from batchmill.store.slice import list_slices
from engine.mill import Mill, line


async def test_a_line_for_an_alias_goes_out_under_its_target(mill: Mill) -> None:
    """The Slice is the target's, and of the body the backend gets, only the model's name is another."""
    mill.catalogue = Catalogue([ModelFacts(name="echo", aliases=("nick",))])
    content = line("a", "nick ☃", "nick", x={"model": "nick"})
    backend = mill.echo()
    hand = mill.hand(backend)
    batch_id = await mill.batch(content)
    await hand.accept()
    slices = await mill.database.read(lambda tx: list_slices(tx, batch_id=batch_id))
    assert [one.model for one in slices] == ["echo"]
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    written = json.dumps(json.loads(content)["body"], ensure_ascii=False).encode()
    assert [call.body for call in backend.calls] == [written.replace(b'"model": "nick"', b'"model": "echo"', 1)]
    assert (await mill.look(batch_id)).object.model == "echo"


async def test_an_alias_and_its_target_share_slices(mill: Mill) -> None:
    """Where a file may name several models, two names of one model are one model's lines; each gets its result."""
    mill.catalogue = Catalogue([ModelFacts(name="echo", aliases=("nick",))])
    hand = mill.hand(mill.echo())
    batch_id = await mill.batch(line("a", model="nick") + line("b"))
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert [result["custom_id"] for result in await mill.results(batch_id)] == ["a", "b"]


async def test_names_are_compared_as_they_are_written(mill: Mill) -> None:
    """Where a file keeps to one model, it keeps to one name of it."""
    mill.catalogue = Catalogue([ModelFacts(name="echo", aliases=("nick",))])
    mill.limits = replace(KIMI, models_per_file=1)
    await mill.knows("echo")
    batch_id = await mill.batch(line("a", model="nick") + line("b"))
    await mill.hand(mill.echo()).validator.step()
    assert [(e.code, e.line) for e in (await mill.look(batch_id)).object.errors or ()] == [("mismatched_model", 2)]


async def test_a_model_for_live_calls_only_is_not_found_by_a_batch(mill: Mill) -> None:
    """A served model that is not for batches is refused under each of its names; so is an alias of an unknown one."""
    mill.catalogue = Catalogue(
        [ModelFacts(name="echo", aliases=("nick",), batch=False), ModelFacts(name="away", aliases=("far",))]
    )
    await mill.knows("echo")
    batch_id = await mill.batch(line("a") + line("b", model="nick") + line("c", model="far"))
    await mill.hand(mill.echo()).validator.step()
    errors = (await mill.look(batch_id)).object.errors or ()
    assert [(e.code, e.line, e.param) for e in errors] == [("model_not_found", n, "body.model") for n in (1, 2, 3)]


@pytest.mark.parametrize("once", [False, True])
async def test_a_locked_parameter_fails_its_request_alone(mill: Mill, *, once: bool) -> None:
    """A request with another value than is fixed is valid, is never sent, and ends as a 400 in the error file."""
    mill.catalogue = Catalogue([ModelFacts(name="echo", aliases=("nick",), locked={"n": (1,), "temperature": (1.0,)})])
    content = (
        line("good", n=1.0, temperature=1)
        + line("bad", n=2)
        + line("plain")
        + line("alias", model="nick", temperature=0.3)
        + line("last", "end")
    )
    backend = mill.echo()
    hand = mill.hand(backend, once=once, window=1)
    batch_id = await mill.batch(content)
    assert await mill.finish(hand, batch_id) is Status.COMPLETED
    assert [result["custom_id"] for result in await mill.results(batch_id)] == ["good", "plain", "last"]
    failed = await mill.results(batch_id, "error")
    assert [(one["custom_id"], one["response"]["status_code"], one["error"]) for one in failed] == [
        ("bad", 400, None),
        ("alias", 400, None),
    ]
    error = failed[0]["response"]["body"]["error"]
    assert {key: error[key] for key in ("type", "param", "code")} == {
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
    assert failed[0]["response"]["request_id"]
    assert (len(backend.calls), hand.lanes[0].pace.in_flight) == (3, 0)
    counts = (await mill.look(batch_id)).object.counts
    assert (counts.completed, counts.failed, counts.total) == (3, 2, 5)


async def test_locks_are_of_the_model_that_has_them(mill: Mill) -> None:
    """Another model's parameters are its backend's business."""
    mill.catalogue = Catalogue([ModelFacts(name="other", locked={"n": (1,)})])
    batch_id = await mill.batch(line("a", n=2))
    assert await mill.finish(mill.hand(mill.echo()), batch_id) is Status.COMPLETED
    assert len(await mill.results(batch_id)) == 1
