"""Every number of the contract, as data: two profiles, and each single limit can be set (choice 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Literal

_MIB, _GIB = 1 << 20, 1 << 30
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

UNITS: Mapping[str, int] = MappingProxyType({"m": _MINUTE, "h": _HOUR, "d": _DAY})  # c.4: of a window, in seconds

DEEPEST = 500  # levels of nesting; the parsers themselves give up at about 900, depending on the caller's own stack

_ORDERED = (
    ("window_min", "window_max"),
    ("expires_after_min", "expires_after_max"),
    ("batches_page", "max_batches_page"),
    ("files_page", "max_files_page"),
    ("keys_page", "max_keys_page"),
    ("results_page", "max_results_page"),
    ("usage_page", "max_usage_page"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this server accepts. Sizes in bytes, times in seconds; None means no limit. The defaults are Kimi's."""

    # What may be asked for.
    endpoints: tuple[str, ...] = ("/v1/chat/completions",)  # that a batch may be for (a.6)
    default_endpoint: str = "/v1/chat/completions"  # of a batch that names none (choice 2)
    window_units: tuple[str, ...] = ("h", "d")  # of a completion window: minutes, hours, days (c.4)
    window_min: int = 12 * _HOUR  # the shortest completion window (a.6)
    window_max: int = 7 * _DAY  # the longest (a.6)
    models_per_file: int | None = 1  # different models in one input (c.2)
    metadata_pairs: int = 16  # of a batch (a.6)
    metadata_key: int = 64  # characters (a.6)
    metadata_value: int = 512  # characters (a.6)
    expires_after_min: int = _HOUR  # the shortest life that a file may be given (a.1, a.6)
    expires_after_max: int = 30 * _DAY  # the longest (a.1, a.6)
    max_priority: int = 100  # of a batch; its negative is the least

    # Files.
    extension: str = ".jsonl"  # that an uploaded file's name ends with (a.1)
    max_input_bytes: int = 100 * _MIB  # of one uploaded file (a.1; g-28: MiB)
    max_files: int = 1_000  # input files of an organisation (a.1)
    max_stored_bytes: int | None = 10 * _GIB  # of all files of an organisation (a.1, "10 GB in total"; g-28)

    # Lines.
    max_lines: int | None = None  # of one input (g-20)
    max_line_bytes: int = 32 * _MIB  # of one line of an input
    max_custom_id: int = 512  # characters (g-19)
    max_depth: int = DEEPEST  # levels of nesting of a line (c.3, reading rules; the envelope is level 1)
    max_errors: int = 1_000  # that are kept of an input with bad lines (choice 12)
    errors_in_list: int = 10  # that each batch in a list of batches shows (choice 12)
    media_urls: Literal["any", "public"] = "any"  # that requests may name; public refuses what points inward (S8)
    max_reply_bytes: int = 32 * _MIB  # of one answer of a backend

    # HTTP.
    max_head_bytes: int = 64 << 10  # the request line and the headers, together (reliability 4.6)
    max_target_bytes: int = 8 << 10  # the path and the query (A32)
    head_seconds: float = 30.0  # a connection may go without a whole head for so long (4.6)
    max_json_body: int = 4 * _MIB  # of a call (a.0)
    batches_page: int = 20  # batches in one page of a list (a.8)
    max_batches_page: int = 100  # the most that may be asked for (a.8)
    files_page: int = 10_000  # files in one page of a list (a.2)
    max_files_page: int = 10_000  # the most that may be asked for (a.2)
    results_page: int = 1_000  # lines in one page of results, which is bounded in bytes, too
    max_results_page: int = 10_000  # the most that may be asked for
    max_results_wait: int = 60  # the longest that a page of results may be waited for
    max_requests_asked: int = 100  # custom_ids whose requests are looked for in one call
    max_scans_per_key: int = 2  # such calls, and retries, at a time: each reads a whole input in a thread
    max_scans: int = 4  # at a time, all together
    max_uploads_per_key: int = 16  # at a time (reliability A29)
    max_uploads: int = 64  # at a time, all together
    max_quotes_per_key: int = 2  # at a time: each reads a whole input
    max_quotes: int = 4  # at a time, all together
    max_trial: int = 100  # lines that a quote may have run
    max_inline_bytes: int = 32 * _MIB  # a body with requests in it, which is held in memory
    max_inline_requests: int = 10_000  # requests of one inline batch
    max_inline_per_key: int = 2  # inline batches at a time
    max_inline: int = 8  # at a time, all together
    max_streams_per_key: int = 100  # answers that go on, at a time: each looks into the rows every second, or oftener
    max_streams: int = 400  # at a time, all together
    body_idle: float = 30.0  # a body may stand still for so long (reliability 4.6)
    body_rate: int = 1024  # bytes a second that it must come at
    body_grace: float = 10.0  # beyond so much waiting
    body_total: float = 3600.0  # of waiting, whatever the rate
    drain_bytes: int = 128 * _MIB  # of a refused body: a client that is still sending gets to read why (contract f.13)
    drain_seconds: float = 5.0  # the longest that a refused body is read on for
    answer_idle: float = 60.0  # an answer may wait for so long for its client to read any of it
    failed_auth_per_minute: int | None = 60  # bad keys from one address (S10)
    max_keys: int = 1_000  # that are good, in an organisation
    keys_page: int = 1_000  # keys in one page of a list
    max_keys_page: int = 1_000  # the most that may be asked for
    usage_days: int = 366  # that a report of usage may span
    usage_page: int = 1_000  # entries in one page of it, each of a day, a key and a model
    max_usage_page: int = 10_000  # the most that may be asked for
    max_idempotency_key: int = 255  # characters (a.9)
    max_webhooks: int = 20  # of an organisation, and of each batch
    idempotency_kept: int = _DAY  # how long an Idempotency-Key is remembered (choice 9)
    retry_replayed: int = 15 * _MINUTE  # how long a client's retry without a key gets the first answer (choice 9)

    def __post_init__(self) -> None:
        """Refuse what could not be kept; the ValueError begins with the limit's name."""
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value in ("", ()) or (isinstance(value, int | float) and not value > 0):  # not a number, either
                raise ValueError(f"{name}: must be positive or hold something, not {value!r}")
        for least, most in _ORDERED:
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least}: may be at most {most}, {getattr(self, most)}, not {getattr(self, least)}")
        if self.max_depth > DEEPEST:
            raise ValueError(f"max_depth: may be at most {DEEPEST}, not {self.max_depth}")
        if self.default_endpoint not in self.endpoints:
            raise ValueError(f"default_endpoint: {self.default_endpoint!r} is none of the endpoints")
        if not UNITS.keys() >= set(self.window_units):
            raise ValueError(f"window_units: each must be one of {', '.join(UNITS)}, not {list(self.window_units)}")


KIMI = Limits()

OPEN = replace(  # choice 1: for operators who own the hardware
    KIMI,
    endpoints=(
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/moderations",
    ),
    window_units=("m", "h", "d"),
    window_min=_MINUTE,
    window_max=30 * _DAY,
    max_input_bytes=2 * _GIB,
    max_stored_bytes=None,  # ours: five input files would fill Kimi's 10 GB
    models_per_file=None,
)

PROFILES: Mapping[str, Limits] = MappingProxyType({"kimi": KIMI, "open": OPEN})
