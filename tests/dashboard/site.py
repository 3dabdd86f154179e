"""The server of the dashboard's tests, as its API's clients have it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI

from acceptance.serving import Processes, Server, until
from dashboard.model import Model

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
            options = [word for scope in scopes for word in ("--scope", scope)]
            made = self.processes.batchmill(
                "keys", "create", "--data", self.server.data, "--org", org, "--name", f"of {org}", "--json", *options
            )
            assert made.code == 0, made.err
            self._keys[asked] = json.loads(made.out)["key"]
        return self._keys[asked]

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
