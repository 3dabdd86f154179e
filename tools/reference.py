"""Makes docs/reference of the code: commands, settings, limits, routes, metrics, states. `make reference` writes it.

What is said there is said in the code: help texts, docstrings, comments beside fields, the OpenAPI document. Run with
`--check`, it only says which page is not what the code gives.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer.main
from prometheus_client.core import Metric

from batchmill.api.document import openapi
from batchmill.api.metrics import Rows
from batchmill.cli.exit import ClientExit, Exit, RunExit
from batchmill.cli.main import app
from batchmill.settings import BackendSettings, ModelSettings, Settings
from batchmill.spec.limits import KIMI, OPEN, PROFILES, Limits
from batchmill.spec.states import diagram
from batchmill.store.alerts import Alerts
from batchmill.store.backlog import Backlog
from batchmill.telemetry import Metrics

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
_NO_BACKLOG = Backlog(batches={}, stuck=0, open_lines=0)
_NO_ALERTS = Alerts(at_risk=0, margin=0, waiting=0, oldest_wait=0, paused=0, workers=0, away=0)
_FIELD = re.compile(r"    (\w+): ")
# Where a limit comes from is for who works on the code: a section of the contract, a choice where that is silent.
_SOURCE = re.compile(r" \((?:[a-g][.-]|[AS]?\d|choice |contract |reliability )[^()]*\)$")
_EVERYWHERE = {"x-request-id", "msh-request-id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}


def pages() -> Mapping[str, str]:
    """Return each page by its file's name."""
    return {
        "commands.md": _commands(),
        "settings.md": _settings(),
        "limits.md": _limits(),
        "api.md": _api(),
        "metrics.md": _metrics(),
        "states.md": _states(),
    }


def comments(of: type) -> Mapping[str, str]:
    """Return what the source says of each field: the comment behind it, or those right above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(of).splitlines():
        comment = re.search(r"\s# (.*)$", line)
        field = _FIELD.match(line)
        if field:
            found[field[1]] = comment[1] if comment else " ".join(above)
        above = [*above, comment[1]] if comment and not field else []
    return found


def _page(title: str, intro: str, *parts: str) -> str:
    made = "<!-- Made by tools/reference.py: run `make reference`, do not edit. -->"
    return "\n\n".join([f"# {title}", made, intro, *parts]) + "\n"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _commands() -> str:
    root: Any = typer.main.get_command(app)
    codes = _table(["code", "name", "of `run`, `check` and `convert`", "of those that ask a server"], _exit_codes())
    intro = "Every command takes `--help`. What a command cannot do ends with one sentence on stderr and an exit code."
    return _page("Commands", intro, *_walk(root, "batchmill"), "## Exit codes", codes)


def _exit_codes() -> Iterator[Sequence[str]]:
    named = [{0: "GOOD"} | {code.value: code.name for code in kind} for kind in (Exit, RunExit, ClientExit)]
    for code in sorted({code for names in named for code in names}):
        yield [str(code), *(_words(names.get(code, "–")) for names in named)]


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _walk(command: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - typer's own classes have no public name
    if not hasattr(command, "commands"):
        yield f"## {path}"
        yield inspect.cleandoc(command.help or "")
        arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        yield f"```text\n{' '.join([path, '[OPTIONS]', *arguments])}\n```"
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
        if options:
            yield _table(
                ["option", "what it does"],
                ([_names(p), (p.help or "").strip()] for p in options),
            )
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, f"{path} {name}")


def _names(option: Any) -> str:  # noqa: ANN401 - as above
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _settings() -> str:
    intro = (
        "Each setting is a name in the TOML file that `--settings` names, and `BATCHMILL_NAME` in the environment; most"
        " are flags, too. Flags win over the environment, and that over the file."
    )
    nested = [
        f"## `[[backend]]`\n\n{_fields(BackendSettings)}",
        f'## `[models."NAME"]`\n\n{_fields(ModelSettings)}',
    ]
    return _page("Settings", intro, _fields(Settings), *nested)


def _fields(of: type[Any]) -> str:
    said, flags = comments(of), _flags()
    rows = (
        [f"`{name}`", _default(field), said.get(name) or flags.get(name, "")] for name, field in of.model_fields.items()
    )
    return _table(["name", "default", "what it is"], rows)


def _flags() -> Mapping[str, str]:
    """Return what `serve` and `worker` say of the flags that are settings."""
    root: Any = typer.main.get_command(app)
    return {p.name: p.help or "" for name in ("worker", "serve") for p in root.commands[name].params}


def _default(field: Any) -> str:  # noqa: ANN401 - a field of pydantic's
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        return "needed"
    shown = str(default).lower() if isinstance(default, bool) else default
    return "–" if default in (None, (), {}) else f"`{shown}`"


def _limits() -> str:
    intro = (
        "Two profiles, `--limits kimi` (the published limits) and `--limits open`; a settings file sets each limit anew"
        " in `[limits_override]`, and `none` takes one away. Sizes are bytes, times seconds."
    )
    assert set(PROFILES) == {"kimi", "open"}  # noqa: S101 - the page names them
    said = comments(Limits)
    rows = (
        [f"`{f.name}`", _value(getattr(KIMI, f.name)), _value(getattr(OPEN, f.name)), _SOURCE.sub("", said[f.name])]
        for f in fields(Limits)
    )
    return _page("Limits", intro, _table(["limit", "kimi", "open", "what it is"], rows))


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _api() -> str:
    document: Any = openapi(version="", limits=OPEN)
    intro = (
        "Every route needs `Authorization: Bearer KEY`, save those for machines. Each answer has an `x-request-id`, and"
        " where calls are limited `X-RateLimit-Limit`, `-Remaining` and `-Reset`. All but 2xx is an [Error](#error)."
        " `/openapi.json` of a running server is this page for programs, with its own limits; `/docs` shows it."
    )
    objects = (
        part
        for name, schema in document["components"]["schemas"].items()
        for part in (f"### {name}", schema.get("description", ""), _table(["member", "what it is"], _members(schema)))
        if part
    )
    return _page("Routes", intro, *_routes(document["paths"]), "## Objects", *objects)


def _routes(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, item in paths.items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            yield f"## {method.upper()} {path}"
            yield f"{operation['summary']}. {operation['description']}"
            parameters = operation.get("parameters", [])
            if parameters:
                rows = ([f"`{p['name']}`", p["in"], _schema(p["schema"])] for p in parameters)
                yield _table(["parameter", "in", "what it may be"], rows)
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                yield _table([f"member of the body ({kind})", "what it may be"], _members(body["schema"], asked=True))
            yield from _answers(operation["responses"])


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    answer = next((responses[status] for status in ("200", "206") if status in responses), {})
    kinds = [f"{_schema(content['schema'])} (`{kind}`)" for kind, content in answer.get("content", {}).items()]
    refused = ", ".join(f"`{status}`" for status in responses if not status.startswith("2"))
    yield f"Answers {' or '.join(kinds) or 'with headers alone'}." + (f" Else: {refused}." if refused else "")
    own = [item for item in answer.get("headers", {}).items() if item[0] not in _EVERYWHERE]
    if own:
        yield _table(
            ["header of the answer", "what it says"], ([f"`{n}`", h.get("description", "as HTTP says")] for n, h in own)
        )


def _members(schema: Mapping[str, Any], path: str = "", *, asked: bool = False) -> Iterator[Sequence[str]]:
    """Yield what stands in an object, and in objects and lists within it: `a.b`, `a[].b`."""
    for name, member in schema.get("properties", {}).items():
        needed = "needed; " if asked and name in schema.get("required", ()) else ""
        yield [f"`{path}{name}`", needed + (_schema(member) or "anything")]
        inner, place = (
            (member.get("items", {}), f"{path}{name}[].") if "items" in member else (member, f"{path}{name}.")
        )
        yield from _members(inner, place, asked=asked)


def _schema(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    kinds = schema.get("type", ())
    told = [" or ".join([kinds] if isinstance(kinds, str) else kinds)]
    if "items" in schema and "properties" not in schema["items"]:
        told += ["of " + _schema(schema["items"])]
    told += [f"`{schema['const']}`"] if "const" in schema else []
    told += [", ".join(f"`{value}`" for value in schema.get("enum", ()))]
    told += [f"`{schema['pattern']}`"] if "pattern" in schema else []
    told += [f"from {schema['minimum']} to {schema['maximum']}"] if {"minimum", "maximum"} <= schema.keys() else []
    told += [f"default `{schema['default']}`"] if "default" in schema else []
    told += [schema.get("description", "")]
    return "; ".join(word for word in told if word)


def _metrics() -> str:
    intro = "`/metrics`, on the port after the API's own or on `--metrics-port`. It asks for no key: keep it inside."
    known = [
        *Metrics().registry.collect(),
        *Rows(backlog=_NO_BACKLOG, alerts=_NO_ALERTS, disk=(0, 0), backends=(), now=0.0).collect(),
    ]
    rows = ([f"`{_full_name(m)}`", m.type, m.documentation] for m in sorted(known, key=lambda m: m.name))
    return _page("Metrics", intro, _table(["name", "type", "what it says"], rows))


def _full_name(metric: Metric) -> str:
    return metric.name + ("_total" if metric.type == "counter" else "")


def _states() -> str:
    intro = "A batch has eight states. Each event has one writer; what a state does not know, it does not do."
    return _page("States of a batch", intro, f"```mermaid\n{diagram()}```")


def main(words: Sequence[str], say: Callable[[str], object] = print) -> int:
    """Write the pages, or compare them; 1 if one is not what the code gives."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = 0
    for name, text in pages().items():
        file = FOLDER / name
        if "--check" in words:
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                say(f"docs/reference/{name} is not what the code gives: run `make reference`")
                stale = 1
        else:
            file.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
