"""What a line costs with the batch runners that others have: CPU of the whole process, beside a bare aiohttp loop.

    python bench/clients.py --rounds 5

All send the same 1 KB lines, 256 in flight, to a compiled server on a core of its own, which answers with 700 bytes.
Each figure is of a fresh process, and they take turns. Batchmill and the bare loop are those of bench/durable.py; the
others are in bench/peers.py, in venvs that `make .venv/bench` makes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dispatch import stub
from figure import Figure, arguments, report

_GROUP = "Other clients"
_HERE = Path(__file__).parent
_VENVS = _HERE.parent / ".venv" / "bench"
_BARE = "bare aiohttp @256"
_OURS = "durable @256"
# name: its Python, lines (fewer for the slow ones), what it does not do
_PEERS = {
    "openai": (Path(sys.executable), 3000, "Results are written, not synced; a crash loses what was sent."),
    "saturate": (_VENVS / "saturate" / "bin" / "python", 3000, "Parquet parts, not synced."),
    "flexllm": (_VENVS / "flexllm" / "bin" / "python", 5000, "A checkpoint flushed each second, not synced."),
}
_BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 970)
_LINE = b'{"custom_id": "request-%d", "method": "POST", "url": "/v1/chat/completions", "body": %b}\n'


def _figures(rounds: int, folder: Path) -> Iterator[Figure]:
    runs = {name: command for name, command in _commands(folder).items() if name not in _PEERS or _is_there(name)}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    versions: dict[str, str] = {}
    with stub(folder) as url:
        for _ in range(rounds):
            for name, command in runs.items():
                said = _run(name, command, url)
                taken[name].append(said["us"])
                versions[name] = said.get("version", "")
    for name, costs in taken.items():
        print(f"{name} {versions[name]}: {', '.join(f'{cost:.1f}' for cost in costs)} CPU-us per line")
    yield _ratio(f"Batchmill, {_OURS}", taken[_OURS], taken[_BARE], "The whole durable path; its goal is there.")
    for name, (_, _, note) in _PEERS.items():
        if name in taken:
            yield _ratio(f"{name} {versions[name]}", taken[name], taken[_BARE], note)
        else:
            reason = "NOT RUN: its venv does not have it; `make .venv/bench` installs it from the package index."
            yield Figure(group=_GROUP, name=_name(name), value=None, note=reason)


def _commands(folder: Path) -> dict[str, list[str | Path]]:
    """Return what is run for each, without the URL; the inputs are written."""
    ours: list[str | Path] = [sys.executable, _HERE / "durable.py", "--one"]
    commands: dict[str, list[str | Path]] = {_BARE: [*ours, _BARE], _OURS: [*ours, _OURS]}
    for name, (python, lines, _) in _PEERS.items():
        source = folder / f"{name}.jsonl"
        source.write_bytes(b"".join(_LINE % (number, _BODY) for number in range(lines)))
        commands[name] = [python, _HERE / "peers.py", name, source]
    return commands


def _is_there(name: str) -> bool:
    python = _PEERS[name][0]
    return python.exists() and not subprocess.run([python, "-c", f"import {name}"], check=False).returncode


def _run(name: str, command: list[str | Path], url: str) -> dict[str, Any]:
    if name not in _PEERS:
        return _said([*command, "--url", url])
    with tempfile.TemporaryDirectory() as results:
        return _said([*command, url.removesuffix("/chat/completions"), results])


def _said(command: list[str | Path]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _name(peer: str) -> str:
    return f"CPU per line, {peer} / {_BARE}"


def _ratio(peer: str, ours: list[float], theirs: list[float], note: str) -> Figure:
    return Figure.of_pairs(
        [a / b for a, b in zip(ours, theirs, strict=True)], group=_GROUP, name=_name(peer), note=note
    )


def main() -> None:
    """Compare all."""
    options = arguments(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(_figures(chosen.rounds, Path(folder)), chosen.json)


if __name__ == "__main__":
    main()
