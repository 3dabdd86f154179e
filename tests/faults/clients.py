"""The clients of a run: each is an organisation that keeps batches open, and a journal of what it was told."""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, InternalServerError, OpenAI
from openai.types import Batch

from faults.input import Fate, Order, make_order
from faults.journal import Journal

T = TypeVar("T")

FINAL = ("completed", "failed", "expired", "cancelled")
_AT_ONCE = 2  # batches open in an organisation
_LOOK_SECONDS = 0.25
_PATIENCE = 60.0  # of one call, over deaths of the API
_GONE = 404
_PAUSED = 0.5  # of the batches, once
_PAUSE_SECONDS = 4.0  # longer than a worker may take to hear of it
_PAGE = 200  # results read at a look


@dataclass(slots=True, kw_only=True)
class Placed:
    """A batch that the API has acknowledged; `results` are what was read of them while it ran, behind `cursor` more."""

    order: Order
    batch_id: str
    file_id: str
    since: float
    pauses: float | None  # seconds from its creation
    paused: float | None = None  # since when
    cursor: str | None = None
    results: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    deleted: bool = False
    seen: str = ""


@dataclass(slots=True, kw_only=True)
class Client:
    """One organisation's client, in a thread of its own until `ending` is set and all its batches are final."""

    name: str
    key: str
    url: str
    journal: Journal
    seed: int
    most_lines: int
    ending: threading.Event
    poisoned: bool = False  # each batch holds a line that kills its worker
    orders: dict[str, Order] = field(default_factory=dict)  # by name, all that were ever placed
    placed: dict[str, Placed] = field(default_factory=dict)  # by name, the acknowledged ones that are not final yet
    fault: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        """Start."""
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self.thread.start()

    def api(self) -> OpenAI:
        """Return the official client, which tries nothing twice by itself."""
        return OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=20.0)

    def _insist(self, call: Callable[[], T]) -> T:
        """Call until there is an answer: the API is killed now and then, and says it when rows or bytes are away."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return call()
            except APITimeoutError:
                self.journal.keep("timed out", self.name)
                if time.monotonic() > end:
                    raise
            except APIConnectionError:
                if time.monotonic() > end:
                    raise
            except InternalServerError as answer:
                self.journal.keep(
                    "refused",
                    self.name,
                    status=answer.status_code,
                    retry_after=answer.response.headers.get("retry-after"),
                )
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def _run(self) -> None:
        draw = random.Random(self.seed)  # noqa: S311 - it must be the same again
        steering = random.Random(f"steering {self.seed}")  # noqa: S311 - as above
        try:
            with self.api() as api:
                while self.placed or not self.ending.is_set():
                    if len(self.placed) < _AT_ONCE and not self.ending.is_set():
                        name = f"{self.name}-{len(self.orders)}"
                        self.orders[name] = make_order(name, draw, most_lines=self.most_lines, poisoned=self.poisoned)
                        self._place(api, self.orders[name], steering)
                    for placed in list(self.placed.values()):
                        self._attend(api, placed)
                    time.sleep(_LOOK_SECONDS)
        except BaseException as fault:  # noqa: BLE001 - told by whoever waits for this thread
            self.fault = fault

    def _place(self, api: OpenAI, order: Order, steering: random.Random) -> None:
        content = order.content
        file = self._insist(lambda: api.files.create(file=(f"{order.name}.jsonl", content), purpose="batch"))
        self.journal.keep("uploaded", order.name, file=file.id, sha256=hashlib.sha256(content).hexdigest())
        metadata = {"order": order.name}
        if order.fate is Fate.EXPIRE:
            metadata["window"] = str(int(order.moment))

        def create() -> Batch:
            # An answer that was lost leaves a whole batch or none; a second one would be a second order.
            self.journal.keep("creating", order.name, file=file.id)
            found = [b for b in api.batches.list(limit=20).data if (b.metadata or {}).get("order") == order.name]
            if found:
                return found[0]
            return api.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata=metadata,
            )

        batch = self._insist(create)
        self.journal.keep("created", order.name, batch=batch.id, status=batch.status)
        self.placed[order.name] = Placed(
            order=order,
            batch_id=batch.id,
            file_id=file.id,
            since=time.monotonic(),
            pauses=steering.uniform(0, 3) if steering.random() < _PAUSED else None,
        )

    def _attend(self, api: OpenAI, placed: Placed) -> None:
        """Look at a batch, and do to it what is its fate."""
        order, age = placed.order, time.monotonic() - placed.since
        batch = self._insist(lambda: api.batches.retrieve(placed.batch_id))
        self._saw(placed, batch)
        if order.fate is Fate.CANCEL and not placed.cancelled and age >= order.moment:
            placed.cancelled = True
            self._cancel(api, placed)
        self._steer(api, placed, age)
        if order.deletes_input is not None and not placed.deleted and age >= order.deletes_input:
            placed.deleted = True
            self._delete_input(api, placed)
        is_read = self._read_on(api, placed)
        if batch.status in FINAL:
            while not is_read:
                is_read = self._read_on(api, placed)
            published: list[bytes] = []
            for kind, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
                if file_id is not None:
                    content = self._insist(lambda file_id=file_id: api.files.content(file_id).content)  # type: ignore[misc]
                    sha256 = hashlib.sha256(content).hexdigest()
                    self.journal.keep("published", order.name, what=kind, file=file_id, sha256=sha256)
                    published += content.splitlines(keepends=True)
            self.journal.keep(
                "followed",
                order.name,
                read=_digest(placed.results),
                lines=len(placed.results),
                published=_digest(published),
                published_lines=len(published),
            )
            if order.fate is Fate.RUN:
                self._cancel(api, placed)  # too late: it must be refused
            del self.placed[order.name]

    def _read_on(self, api: OpenAI, placed: Placed) -> bool:
        """Read results on from where they were read to; return whether there is nothing behind, now and ever."""
        asked = {"limit": str(_PAGE)} | ({} if placed.cursor is None else {"after": placed.cursor})
        page = self._insist(
            lambda: api.get(f"/batches/{placed.batch_id}/results", cast_to=httpx2.Response, options={"params": asked})
        )
        placed.results += page.content.splitlines(keepends=True)
        placed.cursor = page.headers["x-next-cursor"]
        return bool(page.headers["x-complete"] == "true")

    def _steer(self, api: OpenAI, placed: Placed, age: float) -> None:
        """Pause a batch whose moment has come; let it go on after a while, or when the run ends."""
        if placed.pauses is not None and age >= placed.pauses and not self.ending.is_set():
            placed.pauses = None
            if self._say(api, placed, "pause"):
                placed.paused = time.monotonic()
        elif placed.paused is not None and (self.ending.is_set() or time.monotonic() >= placed.paused + _PAUSE_SECONDS):
            placed.paused = None
            self.journal.keep("resuming", placed.order.name)
            self._say(api, placed, "resume")

    def _say(self, api: OpenAI, placed: Placed, word: str) -> bool:
        """Say a word to a batch, and note the answer; False if it is past its running."""
        try:
            answer = self._insist(lambda: api.post(f"/batches/{placed.batch_id}/{word}", cast_to=Batch))
        except APIStatusError as refused:
            self.journal.keep(f"{word} refused", placed.order.name, code=refused.status_code)
            return False
        self.journal.keep(word, placed.order.name, status=answer.status)
        return True

    def _saw(self, placed: Placed, batch: Batch) -> None:
        counts = batch.request_counts
        if counts is None:
            raise AssertionError(f"{batch.id} has no request_counts")
        seen = f"{batch.status} {counts.completed} {counts.failed}"
        if seen != placed.seen:
            placed.seen = seen
            self.journal.keep(
                "saw",
                placed.order.name,
                status=batch.status,
                total=counts.total,
                completed=counts.completed,
                failed=counts.failed,
            )

    def _cancel(self, api: OpenAI, placed: Placed) -> None:
        name = placed.order.name
        self.journal.keep("cancelling", name)
        try:
            batch = self._insist(lambda: api.batches.cancel(placed.batch_id))
        except APIStatusError as refused:
            self.journal.keep("cancel refused", name, code=refused.status_code)
        else:
            self.journal.keep("cancelled", name, status=batch.status)

    def _delete_input(self, api: OpenAI, placed: Placed) -> None:
        try:
            self._insist(lambda: api.files.delete(placed.file_id))
        except APIStatusError as refused:
            if refused.status_code != _GONE:  # the answer to a first try was lost
                raise
        self.journal.keep("deleted", placed.order.name, file=placed.file_id)


def _digest(lines: list[bytes]) -> str:
    """Return what is the same for the same lines in any order."""
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()
