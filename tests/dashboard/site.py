"""The server of the dashboard's tests, as its API's clients have it."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from openai import OpenAI

from acceptance.serving import Processes, Server, until
from batchmill.cli.keys import MadeKey, create_key
from batchmill.settings import load_settings
from dashboard.model import Model

T = TypeVar("T")

_SCOPES = ("read", "write", "admin")
_FINAL = ("completed", "failed", "expired", "cancelled")


@dataclass(slots=True, kw_only=True)
class Site:
    """A running server before a model, and the organisations that the tests make in it."""

    processes: Processes
    server: Server
    model: Model
    _keys: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    def key(self, org: str = "default", scopes: Sequence[str] = _SCOPES) -> str:
        """Return a key of an organisation with these scopes."""
        asked = (org, tuple(scopes))
        if asked not in self._keys:
            self._keys[asked] = self.new_key(org, scopes).key
        return self._keys[asked]

    def new_key(self, org: str = "default", scopes: Sequence[str] = _SCOPES) -> MadeKey:
        """Make a key of its own, as `batchmill keys create` does."""
        return self.command(create_key, org=org, name=f"of {org}", scopes=scopes, expires_in=None)

    def command(self, command: Callable[..., T], **options: Any) -> T:  # noqa: ANN401 - the command's own
        """Run a command beside the server; it starts a loop of its own, which the tests' thread has already."""
        settings = load_settings({"data": self.server.data})
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(command, settings, **options).result()

    def client(self, key: str) -> OpenAI:
        """Return the official client."""
        return self.processes.client(self.server, key)

    def batch(self, key: str, prompts: Sequence[str], **order: Any) -> str:  # noqa: ANN401 - members of a create
        """Create a batch with these prompts and return its id."""
        client = self.client(key)
        filename = order.pop("filename", "input.jsonl")
        file = client.files.create(file=(filename, jsonl(prompts, **order.pop("line", {}))), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **order
        )
        return made.id

    def hook(self, key: str, batch_id: str) -> str:
        """Add a webhook for a batch, which is told to the model, and return its id."""
        made: Any = self.client(key).post(
            f"/batches/{batch_id}/webhooks", cast_to=object, body={"url": f"{self.model.url}/hook/other"}
        )
        return str(made["id"])

    def finished(self, key: str, batch_id: str) -> Any:  # noqa: ANN401 - the client's own type
        """Wait until a batch is final, and return it."""
        client = self.client(key)
        until(lambda: client.batches.retrieve(batch_id).status in _FINAL, 30, every=0.05)
        return client.batches.retrieve(batch_id)


def jsonl(prompts: Sequence[str], *, model: str = "plain", name: str = "line") -> bytes:
    """Return a line of input for each prompt."""
    lines = [
        {
            "custom_id": f"{name}-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": prompt}]},
        }
        for number, prompt in enumerate(prompts, 1)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
