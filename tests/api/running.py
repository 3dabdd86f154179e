"""Batches that are really run beneath an API: a worker's loops on its rows, bytes and clock, one step at a time."""

import re

from api.served import Served
from batchmill.backends.backend import Call, Reply
from batchmill.spec.limits import Limits
from batchmill.spec.states import FINAL
from engine.mill import CHAT, Mill, Watched

_TOLD = re.compile(rb"fail (\d{3}) (\w+)")


class Moody(Watched):
    """An echo backend that fails the lines which say `fail STATUS CODE`, as long as it is in that mood."""

    moody = True

    async def send(self, call: Call) -> Reply:
        """See `Backend`."""
        told = _TOLD.search(call.body)
        if not (self.moody and told):
            return await super().send(call)
        body = b'{"error":{"message":"I do not like it.","code":"%b"}}' % told[2]
        return Reply(status=int(told[1]), body=body)


class Works:
    """A worker on what an API serves."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self._served = served
        self.mill = Mill(
            folder=served.folder, database=served.database, blobs=served.blobs, clock=served.clock, limits=limits
        )
        self.backend = Moody(self.mill.echo()._echo)
        self._hand = self.mill.hand(self.backend)

    def run(self, batch_id: str) -> None:
        """Let a batch become final."""
        status = self._served.run(self.mill.finish(self._hand, batch_id))
        assert status in FINAL, self._served.run(self.mill.look(batch_id))

    def validate(self) -> None:
        """Let every batch that waits be in progress."""
        self._served.run(self._hand.accept())

    def clear(self) -> None:
        """Let final batches keep nothing but their Files."""
        self._served.sweep()


def chat(custom_id: str, text: str) -> bytes:
    """Return a request's line, written as hardly anybody does."""
    return (
        b'{ "url": "%b", "custom_id": "%b",  "method":"POST","body":{"messages":[{"role":"user","content":"%b"}],'
        b'"model" : "echo"}}' % (CHAT.encode(), custom_id.encode(), text.encode())
    )
