"""Events of batches on their way to webhooks: signed, tried again, delivered once by one of several workers."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from openai import OpenAI

from batchmill.backends.hook import Hook, HttpHook
from batchmill.engine.courier import Courier
from batchmill.spec.ids import mint_id
from batchmill.spec.states import Status
from batchmill.spec.webhooks import BACKOFF, EVENTS, DeliveryStatus, Posted, mint_secret
from batchmill.store.database import Transaction
from batchmill.store.organisation import find_organisation, insert_organisation
from batchmill.store.webhook import (
    Delivery,
    Webhook,
    delete_webhook,
    insert_deliveries,
    insert_webhook,
    list_deliveries,
    list_webhooks,
    replay_delivery,
)
from batchmill.store.worker import void_leases
from batchmill.telemetry import Metrics
from engine.mill import Mill, lines

_ORGANISATION = "ours"  # as a mill names it
_MANY_NAMES = 12  # more than the threads that the loop has for its own on a small machine


@dataclass(kw_only=True)
class Receiver:
    """A real HTTP server that takes events, and answers as it is told: the last answer again and again."""

    answers: list[int] = field(default_factory=lambda: [200])
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        """Take one."""
        self.got.append((dict(request.headers), await request.read()))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers={"location": "http://127.0.0.1:1/"} if status == 302 else None)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    told, app = Receiver(), web.Application()
    app.router.add_post("/hook", told.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    told.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield told
    await runner.cleanup()


@pytest.fixture
async def hook() -> AsyncIterator[HttpHook]:
    """What may go inward: the receivers of tests are here."""
    inward = HttpHook(public_only=False)
    yield inward
    await inward.close()


def courier(mill: Mill, hook: Hook) -> Courier:
    """Return the courier of one worker."""
    return Courier(database=mill.database, hook=hook, clock=mill.clock, metrics=Metrics())


async def until_idle(of: Courier) -> None:
    """Let a courier step until nothing is due or open."""
    while await of.step():
        pass


async def subscribe(mill: Mill, url: str, *events: str, batch_id: str | None = None) -> Webhook:
    """Add a webhook of the mill's organisation."""

    def organisation(tx: Transaction) -> str:
        found = find_organisation(tx, name=_ORGANISATION)
        if found is None:
            found = mint_id("org", 1.0)
            insert_organisation(tx, organisation_id=found, name=_ORGANISATION, now=1)
        return found

    added = Webhook(
        id=mint_id("wh", mill.clock.now()),
        organisation_id=await mill.database.write(organisation),
        batch_id=batch_id,
        url=url,
        events=events or tuple(EVENTS.values()),
        secret=mint_secret(),
        created_at=int(mill.clock.now()),
    )
    await mill.database.write(lambda tx: insert_webhook(tx, added))
    return added


async def log(mill: Mill, webhook: Webhook) -> list[Delivery]:
    """Return the log of a webhook."""
    return list(await mill.database.read(lambda tx: list_deliveries(tx, webhook_id=webhook.id, after=None, limit=100)))


async def completed(mill: Mill) -> str:
    """Run a batch to its end."""
    batch = await mill.batch(lines(2))
    assert await mill.finish(mill.hand(mill.echo()), batch) is Status.COMPLETED
    return batch


async def test_the_official_client_reads_an_event(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """What arrives at a batch's end is signed so that `client.webhooks.unwrap` takes it; another secret does not."""
    mill.clock.time = time.time()  # the client holds the signature's time against its own clock
    webhook = await subscribe(mill, receiver.url)
    batch = await completed(mill)
    await until_idle(courier(mill, hook))
    ((headers, body),) = receiver.got
    client = OpenAI(api_key="none", webhook_secret=webhook.secret)
    event = client.webhooks.unwrap(body, headers)
    assert (event.type, event.data.id) == ("batch.completed", batch)  # type: ignore[union-attr]
    with pytest.raises(Exception, match="signature"):
        client.webhooks.unwrap(body, headers, secret=mint_secret())
    (delivery,) = await log(mill, webhook)
    assert (delivery.status, delivery.attempts, delivery.last_status_code) == (DeliveryStatus.DELIVERED, 1, 200)


async def test_only_wanted_events_are_told(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """A webhook hears of the events that it named, one of a batch of that batch alone."""
    failures = await subscribe(mill, receiver.url, "batch.failed")
    other = await subscribe(mill, receiver.url, batch_id=mint_id("batch", 1.0))
    bad = await mill.batch(b"not JSON\n")
    assert await mill.finish(mill.hand(mill.echo()), bad) is Status.FAILED
    await completed(mill)
    await until_idle(courier(mill, hook))
    assert [(each.event, each.batch_id) for each in await log(mill, failures)] == [("batch.failed", bad)]
    assert await log(mill, other) == []
    assert len(receiver.got) == 1


async def test_the_log_is_kept_for_a_month_and_a_batch_s_own_webhook_with_it(
    mill: Mill, receiver: Receiver, hook: HttpHook
) -> None:
    """Then it is forgotten, with the webhooks of batches that are over; the others stay."""
    ours, batch = await subscribe(mill, receiver.url), await mill.batch(lines(2))
    own = await subscribe(mill, receiver.url, batch_id=batch)
    assert await mill.finish(mill.hand(mill.echo()), batch) is Status.COMPLETED
    going_on = await subscribe(mill, receiver.url, batch_id=await mill.batch(lines(1)))

    async def kept() -> set[str]:
        page = partial(list_webhooks, organisation_id=ours.organisation_id, after=None, limit=9)
        return {each.id for each in await mill.database.read(page)}

    mine = courier(mill, hook)
    for days, webhooks, told in ((29, {ours, own, going_on}, 1), (2, {ours, going_on}, 0)):
        await until_idle(mine)
        await mill.clock.advance(days * 86_400.0)
        await until_idle(mine)
        assert await kept() == {each.id for each in webhooks}
        assert (len(await log(mill, ours)), len(await log(mill, own))) == (told, told)


async def test_a_failed_try_is_made_again_under_the_same_id(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """500, then a redirect that is not followed, then 200: three tries at the schedule's times, one id, one body."""
    webhook = await subscribe(mill, receiver.url)
    receiver.answers = [500, 302, 200]
    await completed(mill)
    sent = courier(mill, hook)
    for wait in (0, *BACKOFF[:2]):
        await until_idle(sent)
        await mill.clock.advance(max(0, wait - 1))
        await until_idle(sent)
        await mill.clock.advance(1)
    await until_idle(sent)
    assert len(receiver.got) == 3
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == 1
    assert len({headers["webhook-signature"] for headers, _ in receiver.got}) == 3  # each of its own time
    (delivery,) = await log(mill, webhook)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.DELIVERED, 3)


async def test_tries_end_and_can_be_begun_anew(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """After the schedule's end it has failed, with the reason; a replay sends the same event again."""
    webhook = await subscribe(mill, receiver.url)
    receiver.answers = [500]
    await completed(mill)
    sent = courier(mill, hook)
    for wait in (0, *BACKOFF):
        await mill.clock.advance(wait)
        await until_idle(sent)
    (delivery,) = await log(mill, webhook)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.FAILED, len(BACKOFF) + 1)
    assert (delivery.last_status_code, delivery.last_error, delivery.next_at) == (500, "answered with 500", None)
    receiver.answers = [200]
    now = int(mill.clock.now())
    replay = await mill.database.write(
        lambda tx: replay_delivery(tx, webhook_id=webhook.id, delivery_id=delivery.id, now=now)
    )
    assert replay is not None
    await until_idle(sent)
    (delivery,) = await log(mill, webhook)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.DELIVERED, 1)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/", "public"),
        ("http://localhost:1/", "public"),
        ("http://0x7f000001:1/", "public"),
        ("http://127.0.0.1.nip.invalid:1/", "not known|resolution|resolve|failure"),
    ],
)
async def test_nothing_is_sent_inward(mill: Mill, url: str, reason: str) -> None:
    """An address of this machine, however it is written, is not called, though a row names it."""
    webhook = await subscribe(mill, url)
    await completed(mill)
    guarded = HttpHook(public_only=True)
    await until_idle(courier(mill, guarded))
    await guarded.close()
    (delivery,) = await log(mill, webhook)
    assert delivery.status is DeliveryStatus.PENDING
    assert delivery.last_error is not None
    assert any(word in delivery.last_error.lower() for word in reason.split("|")), delivery.last_error


async def test_a_name_that_leads_inward_is_not_followed(
    mill: Mill, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a public name stands for is judged when it is looked up, and nothing else is connected to."""
    port = int(receiver.url.split(":")[2].split("/")[0])
    webhook = await subscribe(mill, f"http://hooks.example.com:{port}/hook")
    await completed(mill)
    original = socket.getaddrinfo

    def rebound(host: str, *args: Any, **more: Any) -> object:  # noqa: ANN401 - as it was
        return original("127.0.0.1" if host == "hooks.example.com" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    guarded = HttpHook(public_only=True)
    await until_idle(courier(mill, guarded))
    await guarded.close()
    (delivery,) = await log(mill, webhook)
    assert receiver.got == []
    assert "not public" in str(delivery.last_error)


async def test_a_silent_name_server_holds_up_nobody(
    mill: Mill, receiver: Receiver, hook: HttpHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the names of many webhooks are looked up in vain, threads do their work and other events arrive."""
    answered, asked, original = threading.Event(), threading.Semaphore(0), socket.getaddrinfo

    def silent(host: str, *args: Any, **more: Any) -> object:  # noqa: ANN401 - as it was
        if host.endswith(".example.com"):
            asked.release()
            assert answered.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return original(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    posts = [
        asyncio.create_task(hook.post(f"http://h{n}.example.com/", body=b"{}", headers={})) for n in range(_MANY_NAMES)
    ]
    for _ in posts:
        assert await asyncio.wait_for(asyncio.to_thread(asked.acquire, timeout=5), 5)
    await subscribe(mill, receiver.url.replace("127.0.0.1", "localhost"))
    await completed(mill)
    await until_idle(courier(mill, hook))
    assert len(receiver.got) == 1
    answered.set()
    assert all("nobody answers" in str(posted.reason) for posted in await asyncio.gather(*posts))


async def test_two_workers_send_an_event_once(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """Each event is claimed by one of them."""
    await subscribe(mill, receiver.url)
    for _ in range(3):
        await completed(mill)
    await asyncio.gather(*(until_idle(courier(mill, hook)) for _ in range(2)))
    assert len(receiver.got) == len({headers["webhook-id"] for headers, _ in receiver.got}) == 3


async def test_a_webhook_that_goes_takes_its_log_with_it(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """What was pending for it is sent no more."""
    webhook = await subscribe(mill, receiver.url)
    await completed(mill)
    mine = webhook.organisation_id
    assert await mill.database.write(lambda tx: delete_webhook(tx, organisation_id=mine, webhook_id=webhook.id))
    await until_idle(courier(mill, hook))
    assert (receiver.got, await log(mill, webhook)) == ([], [])


@dataclass
class Slow:
    """Receivers that answer when they are told to; what was asked of them, by URL."""

    asked: list[str] = field(default_factory=list)
    answers: list[asyncio.Future[Posted]] = field(default_factory=list)
    posts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def post(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> Posted:  # noqa: ARG002 - as `Hook`
        """See `Hook`."""
        self.asked.append(url)
        self.answers.append(asyncio.get_running_loop().create_future())
        self.posts.release()
        return await self.answers[-1]

    async def called(self, of: Courier, times: int) -> "asyncio.Task[bool]":
        """Return a step of a courier, once it has called so often."""
        stepping = asyncio.create_task(of.step())
        async with asyncio.timeout(10):
            for _ in range(times):
                await self.posts.acquire()
        return stepping


async def stop(stepping: "asyncio.Task[bool]") -> None:
    """Let a courier die."""
    stepping.cancel()
    await asyncio.wait([stepping])


async def test_a_slow_receiver_holds_up_no_other(mill: Mill) -> None:
    """However much is due for one webhook, for many of one organisation: what is due for another is sent beside it."""
    slow = await subscribe(mill, "http://slow.example.com/")
    due = partial(insert_deliveries, batch_id=mint_id("batch", 1.0), status=Status.COMPLETED, now=1)
    for _ in range(70):
        await mill.database.write(lambda tx: due(tx, webhooks=[slow]))
    for n in range(20):
        more = await subscribe(mill, f"http://slow-{n}.example.com/")
        for _ in range(5):
            await mill.database.write(lambda tx, more=more: due(tx, webhooks=[more]))
    theirs = replace(slow, id=mint_id("wh", 2.0), organisation_id=mint_id("org", 2.0), url="http://quick.example.com/")
    await mill.database.write(
        lambda tx: insert_organisation(tx, organisation_id=theirs.organisation_id, name="theirs", now=1)
    )
    await mill.database.write(lambda tx: insert_webhook(tx, theirs))
    await mill.database.write(lambda tx: due(tx, webhooks=[theirs]))
    receivers = Slow()
    of = courier(mill, receivers)
    stepping = await receivers.called(of, 1)
    await asyncio.wait([stepping])
    assert receivers.asked.count(theirs.url) == 1
    assert receivers.asked.count(slow.url) < 8
    assert len(receivers.asked) < 24
    for answer in receivers.answers:
        answer.set_result(Posted(status=200))
    await of.step()
    await stop(await receivers.called(of, 18))  # what waited goes on


async def test_a_restart_sends_what_was_claimed_at_once(mill: Mill, receiver: Receiver, hook: HttpHook) -> None:
    """Also after a reboot, whose lease clock begins anew: a claim of before would hold for as long again."""
    await subscribe(mill, receiver.url)
    await completed(mill)
    dead = Slow()
    await stop(await dead.called(courier(mill, dead), 1))
    mill.clock.uptime = 1.0
    await mill.database.write(lambda tx: void_leases(tx, worker_id="heir"))
    await until_idle(courier(mill, hook))
    assert len(receiver.got) == 1


async def test_a_try_that_a_replay_has_overtaken_changes_nothing(
    mill: Mill, receiver: Receiver, hook: HttpHook
) -> None:
    """The first try hangs, is replayed, and the second arrives: when the first gives up, the event stays delivered."""
    webhook = await subscribe(mill, receiver.url)
    await completed(mill)
    first, hanging = courier(mill, slow := Slow()), (await log(mill, webhook))[0]
    await asyncio.wait([await slow.called(first, 1)])
    await mill.clock.advance(1)
    now = int(mill.clock.now())
    await mill.database.write(lambda tx: replay_delivery(tx, webhook_id=webhook.id, delivery_id=hanging.id, now=now))
    await until_idle(courier(mill, hook))
    slow.answers[0].set_result(Posted(reason="no answer"))
    await until_idle(first)
    (delivery,) = await log(mill, webhook)
    assert (delivery.status, delivery.last_status_code, len(receiver.got)) == (DeliveryStatus.DELIVERED, 200, 1)


async def test_what_a_dead_worker_had_claimed_is_sent_by_another(
    mill: Mill, receiver: Receiver, hook: HttpHook
) -> None:
    """A claim without an outcome lapses; the late outcome of the first claim then changes nothing."""
    webhook = await subscribe(mill, receiver.url)
    await completed(mill)
    dead = Slow()
    await stop(await dead.called(courier(mill, dead), 1))
    await until_idle(courier(mill, hook))
    assert receiver.got == []
    await mill.clock.advance(61)
    await until_idle(courier(mill, hook))
    (delivery,) = await log(mill, webhook)
    assert (delivery.status, delivery.attempts, len(receiver.got)) == (DeliveryStatus.DELIVERED, 2, 1)
