"""One frozen settings object: file < environment < flags."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from batchmill.spec.limits import PROFILES, Limits
from batchmill.spec.models import Catalogue, ModelFacts
from batchmill.spec.prices import Price

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, None: 1.0}
_LONGEST = 100 * 365 * 86_400.0  # a hundred years: every calendar and every row holds its end
_LAST_PORT = 65535
_DEAREST = 1_000_000_000  # for a million tokens, in any currency
_SCHEMES = ("http", "https", "echo")
_DATABASES = ("postgresql", "postgres")
_BUCKETS = ("s3", "gs", "az")


class BadSettings(Exception):  # noqa: N818 - it states what is so
    """The settings do not make sense; each line of the text names one and says why."""


def _seconds(value: object) -> object:
    """Read a duration such as `30s` or `2m`; a bare number is seconds."""
    if isinstance(value, bool):
        raise ValueError("true and false are no durations")  # noqa: TRY004 - a TypeError is none of pydantic's
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(f"{value!r} is not a duration such as 30s or 2m")
        return float(match[1]) * _UNITS[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=_LONGEST)]


def _number(value: object) -> object:
    """Refuse true, which would be read as 1; a number may be written as text."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")  # noqa: TRY004 - as above
    return value


Number = Annotated[int, BeforeValidator(_number)]


def _host(text: str) -> str:
    """Refuse no host at all, as of a variable that is not set: it would be every address there is."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} is no address; 0.0.0.0 stands for every one of this machine")
    return text


def _folder(value: object) -> object:
    """Refuse no name at all, as of a variable that is not set: it would be the working directory."""
    if value == "":
        raise ValueError("is empty: name a folder")
    return value


def _database(text: str) -> str:
    """Refuse what is no PostgreSQL server; the URL is never shown, since it may hold a password."""
    scheme = urlsplit(text).scheme
    if scheme.startswith("sqlite"):
        raise ValueError("SQLite's file lies under --data; leave --database out")
    if scheme not in _DATABASES:
        raise ValueError("is no URL of the form postgresql://user@host:port/name")
    return text


def _bucket(text: str) -> str:
    """Refuse what is no bucket's URL."""
    parts = urlsplit(text)
    if parts.scheme not in _BUCKETS or not parts.netloc or "@" in parts.netloc or parts.query:
        raise ValueError(f"is no URL of the form s3://bucket/prefix; there are {', '.join(_BUCKETS)}")
    return text


class BackendSettings(BaseModel):
    """One `--backend`: where requests go.

    `key_env` names the environment variable that holds the API key; the key itself is never a setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str  # of its API, such as http://gpu-1:8000/v1, or echo:
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # left out, it is asked for them
    key_env: str | None = None  # the environment variable that holds its API key
    window: Number | None = Field(default=None, ge=1)  # requests in flight; left out, the settings' own
    timeout: Seconds = 1800.0  # one attempt: a reasoning call may take half an hour

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urlsplit(url)
        shown = url.rpartition("@")[2]  # what stands before an @ may be a password
        if parts.scheme not in _SCHEMES or (parts.scheme != "echo" and not parts.hostname):
            raise ValueError(f"{shown!r} is not a URL that begins with http://, https:// or echo:")
        if parts.scheme != "echo" and (parts.query or not url.isprintable() or " " in url):
            raise ValueError(
                f"{shown!r}: paths are added to this URL; leave out the query, spaces and control characters"
            )
        return url


_Value = bool | int | float | str


def _amount(value: object) -> object:
    """Take a number as it is written: 0.1 is a tenth; no text, and no true, which would be read as 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError("is no number")  # noqa: TRY004 - a TypeError is none of pydantic's
    return Decimal(str(value))


_Amount = Annotated[
    Decimal,
    BeforeValidator(_amount),
    Field(ge=0, le=_DEAREST, decimal_places=9),
    PlainSerializer(float, when_used="json"),  # the order to a child process is JSON; text would be no number there
]


class PriceSettings(BaseModel):
    """What a million tokens of a model cost; without `cached`, input read from a cache costs what other input does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: _Amount
    output: _Amount
    cached: _Amount | None = None

    def price(self) -> Price:
        """Return it as the rest of the program knows it."""
        return Price(input=self.input, output=self.output, cached=self.cached)


class ModelSettings(BaseModel):
    """One `[models."NAME"]`: what is to be said of a model that backends serve under this name.

    `locked` gives each locked parameter the value that it may have, or a list of them. What has no default is a member
    of the model's object on the wire where it is set (contract a.10).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), strict=False)  # other names for it
    batch: bool = True  # whether batches may use it
    locked: dict[str, _Value | list[_Value]] = Field(default_factory=dict)  # the value, or values, of a parameter
    owned_by: str = "batchmill"  # shown by GET /v1/models
    context_length: int | None = Field(default=None, ge=1)  # tokens
    supports_image_in: bool | None = None  # shown by GET /v1/models
    supports_video_in: bool | None = None  # shown by GET /v1/models
    supports_reasoning: bool | None = None  # shown by GET /v1/models
    price: PriceSettings | None = None  # per million tokens: input, output and, if it differs, cached

    def facts(self, name: str) -> ModelFacts:
        """Return it as the rest of the program knows it."""
        shown = ("context_length", "supports_image_in", "supports_video_in", "supports_reasoning")
        return ModelFacts(
            name=name,
            aliases=self.aliases,
            batch=self.batch,
            locked={param: values if isinstance(values, list) else [values] for param, values in self.locked.items()},
            owned_by=self.owned_by,
            extras={member: value for member in shown if (value := getattr(self, member)) is not None},
            price=None if self.price is None else self.price.price(),
        )


def _backend(value: object) -> object:
    """Read `URL#model-a,model-b`; anything but text stays for the validator."""
    if not isinstance(value, str):
        return value
    url, _, models = value.partition("#")
    return {"url": url, "models": [name for name in models.split(",") if name]}


def _words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


def _network(text: str) -> str:
    """Refuse what is neither an address nor a network."""
    ip_network(text)
    return text


Network = Annotated[str, AfterValidator(_network)]


def _backends(value: object) -> object:
    """Read the environment's form, URLs with spaces between, and the forms of a flag and of the file."""
    values = _words(value)
    return [_backend(entry) for entry in values] if isinstance(values, (list, tuple)) else values


class Settings(BaseSettings):
    """Everything that can be set. Each field is also `BATCHMILL_…` in the environment and a name in the file."""

    model_config = SettingsConfigDict(
        env_prefix="BATCHMILL_", frozen=True, extra="forbid", nested_model_default_partial_update=False
    )

    data: Annotated[Path, BeforeValidator(_folder)] = Path("batchmill-data")
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Number = Field(default=8000, ge=0, le=_LAST_PORT)
    metrics_port: Number | None = Field(default=None, ge=0, le=_LAST_PORT)  # left out, the one after `port`
    backend: Annotated[tuple[BackendSettings, ...], NoDecode, BeforeValidator(_backends)] = ()
    backend_key_env: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    backend_timeout: Annotated[tuple[Seconds, ...], NoDecode, BeforeValidator(_words)] = ()
    limits: Literal["kimi", "open"] = "kimi"
    models: dict[str, ModelSettings] = Field(default_factory=dict)  # what is to be said of each, below
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"  # of all prices, as ISO 4217 names it
    media_urls: Literal["any", "public"] = "any"  # public: lines with a media URL that points inward are refused
    limits_override: dict[str, Any] = Field(default_factory=dict)  # any limit, over the profile's
    database: Annotated[str, AfterValidator(_database)] | None = None  # left out, SQLite under `data`
    database_pool: Number = Field(default=10, ge=2)  # connections of each process
    database_pooled: bool = False  # the server is a pgbouncer in transaction mode
    allow_unsafe_database: bool = False  # one that runs with fsync=off or full_page_writes=off
    blobs: Annotated[str, AfterValidator(_bucket)] | None = None  # left out, files under `data`
    worker: bool = True  # `serve` runs one beside the API
    settings: Path | None = None
    drain: Seconds = 30.0
    lease: Annotated[Seconds, Field(ge=1)] = 15.0
    on_unknown_outcome: Literal["retry", "fail"] = "retry"
    window: Annotated[Number, Field(ge=1)] | None = None  # requests in flight at each backend; left out, it is found
    polite: bool = False  # leave more of the backends to others than costs nothing
    # auto: lines whose prompts begin alike together, where that saves an engine work; file: as they stand in it
    order: Literal["auto", "file"] = "auto"
    coalesce: bool = False  # of lines of a batch with the same body, to the byte, one is sent
    pack_embeddings: bool = False  # embeddings that differ in nothing but their input go as one call
    transport: Literal["own", "aiohttp"] = "own"  # what carries requests to backends
    model: Path | None = None  # a GGUF file for the built-in engine, in place of its own
    retention: Annotated[Seconds, Field(ge=1)] | None = None  # files without a time of their own; left out, for ever
    download_redirect: bool = False  # a download is sent on to the bucket, by a link that holds for five minutes
    webhook_urls: Literal["public", "any"] = "public"  # public: https to public addresses only
    dashboard: bool = True  # the pages at `/`
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False  # a line for each request of the API
    # Addresses and networks whose X-Forwarded-For is believed.
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_words)] = ()

    @model_validator(mode="after")
    def _has_a_key_for_each(self) -> Self:
        if self.backend_key_env and len(self.backend_key_env) != len(self.backend):
            raise ValueError("backend_key_env: give one name for each backend, in their order; - stands for none")
        if len(self.backend_timeout) not in {0, 1, len(self.backend)}:
            raise ValueError("backend_timeout: give one time for all backends, or one for each, in their order")
        return self

    @model_validator(mode="after")
    def _has_limits_and_models_that_make_sense(self) -> Self:
        limits_over(PROFILES[self.limits], self.limits_override)
        _ = self.catalogue
        return self

    @model_validator(mode="after")
    def _has_a_port_for_metrics(self) -> Self:
        if self.metrics_port is None and self.port == _LAST_PORT:
            raise ValueError(f"metrics_port: there is none after port {_LAST_PORT}; name one")
        return self

    @model_validator(mode="after")
    def _has_a_worker_somewhere(self) -> Self:
        if self.database is None and not self.worker:
            raise ValueError("worker: one cannot be apart from SQLite; set database to a PostgreSQL server")
        return self

    @property
    def is_embedded(self) -> bool:
        """Whether the rows are in the data directory: one `serve` has it for itself."""
        return self.database is None

    @property
    def port_of_metrics(self) -> int:
        """The port that `/metrics` is served on; 0 takes a free one, as for the API."""
        if self.metrics_port is not None:
            return self.metrics_port
        return self.port and self.port + 1

    @property
    def catalogue(self) -> Catalogue:
        """What is configured of models."""
        models = (model.facts(name) for name, model in self.models.items())
        return Catalogue(models, currency=self.currency)

    @property
    def backends(self) -> tuple[BackendSettings, ...]:
        """The backends, each with the name of the variable that holds its key, and with its time limit."""
        backends = self.backend
        if self.backend_key_env:
            names = [None if name == "-" else name for name in self.backend_key_env]
            backends = tuple(b.model_copy(update={"key_env": n}) for b, n in zip(backends, names, strict=True))
        if self.backend_timeout:
            times = self.backend_timeout * (len(backends) if len(self.backend_timeout) == 1 else 1)
            backends = tuple(b.model_copy(update={"timeout": t}) for b, t in zip(backends, times, strict=True))
        return backends

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's own signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, then the environment, then the file that either names."""
        path = init_settings().get("settings") or env_settings().get("settings")
        if path is not None and not Path(path).is_file():  # the library would pass it over
            raise BadSettings(f"settings: there is no file {path}")
        file = TomlConfigSettingsSource(settings_cls, toml_file=path)
        return init_settings, env_settings, file


def limits_over(profile: Limits, override: Mapping[str, Any]) -> Limits:
    """Return a profile with some of its limits set anew (choice 1); the word `none` stands for no limit.

    Raises:
        ValueError: A name or a value makes no sense; each line of the text begins with `limits_override.NAME`.
    """
    types = {field.name: field.type for field in fields(Limits)}
    chosen: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in override.items():
        if name not in types:
            wrong.append(f"limits_override.{name}: there is no such limit")
            continue
        try:  # JSON's strict rules are TOML's: true is no number, 1.5 no whole one, an array is a tuple
            chosen[name] = _strictly(types[name], None if value == "none" else value)
        except ValidationError as error:
            wrong += [f"limits_override.{name}: {each['msg']}" for each in error.errors()]
        except ValueError:  # no end, or no number at all: TOML's inf and nan
            wrong.append(f"limits_override.{name}: {value} is no limit; the word none takes one away")
        except TypeError:  # a date, say
            wrong.append(f"limits_override.{name}: {value} is no number, text or list")
    if wrong:
        raise ValueError("\n".join(wrong))
    try:
        return replace(profile, **chosen)
    except ValueError as error:
        raise ValueError(f"limits_override.{error}") from error


def _strictly(kind: Any, value: object) -> Any:  # noqa: ANN401 - any type, and a value of it
    return TypeAdapter(kind).validate_json(json.dumps(value, allow_nan=False), strict=True)


def load_settings(flags: dict[str, Any]) -> Settings:
    """Return the settings; `flags` holds those that were given on the command line.

    Raises:
        BadSettings: with a line for each wrong one.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise BadSettings("\n".join(_explain(e["loc"], e["msg"]) for e in error.errors())) from error
    except TOMLDecodeError as error:
        raise BadSettings(f"settings: {flags.get('settings') or 'the file of BATCHMILL_SETTINGS'}: {error}") from error
    except (SettingsError, OSError, ValueError) as error:
        raise BadSettings(f"settings: {error}") from error


def _explain(place: tuple[int | str, ...], message: str) -> str:
    name = ".".join(map(str, place))
    return f"{name}: {message.removeprefix('Value error, ')}".removeprefix(": ")
