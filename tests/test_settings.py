"""Settings: flags over environment over file, and every wrong one named."""

import resource
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from batchmill.assemble.backends import build_backends, connections_of
from batchmill.assemble.limits import limits_of
from batchmill.backends.aiohttp_transport import AiohttpTransport
from batchmill.backends.echo import EchoBackend
from batchmill.backends.http import HttpBackend
from batchmill.backends.packing import PackingBackend
from batchmill.backends.wire import WireTransport
from batchmill.settings import BackendSettings, BadSettings, Settings, load_settings
from batchmill.spec.limits import KIMI, OPEN
from batchmill.spec.objects import Usage
from batchmill.spec.prices import Cost, Price
from fakeclock import FakeClock


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment that the tests run in counts."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"BATCHMILL_{field.upper()}", raising=False)


def _file(folder: Path, text: str) -> Path:
    path = folder / "batchmill.toml"
    path.write_text(text)
    return path


def test_nothing_needs_to_be_set() -> None:
    """Without any setting it is one machine, Kimi's limits, and the built-in model."""
    settings = load_settings({})
    assert (settings.host, settings.port, settings.limits) == ("127.0.0.1", 8000, "kimi")
    assert settings.data == Path("batchmill-data")
    assert settings.backends == ()
    assert (settings.lease, settings.drain) == (15.0, 30.0)


@pytest.mark.parametrize(
    ("flags", "port"),
    [({}, 8001), ({"port": 1}, 2), ({"port": 0}, 0), ({"port": 65534}, 65535), ({"port": 65535, "metrics_port": 9}, 9)],
)
def test_metrics_are_next_to_the_api_unless_told(flags: dict[str, int], port: int) -> None:
    """The port of `/metrics` is the one after the API's; a free one when the API takes a free one; or the given one."""
    assert load_settings(flags).port_of_metrics == port


def test_after_the_last_port_there_is_none_for_metrics() -> None:
    """The last port has none after it, so that one for `/metrics` must be named."""
    with pytest.raises(BadSettings, match="metrics_port"):
        load_settings({"port": 65535})


def test_the_file_is_weakest_and_flags_are_strongest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting is taken from a flag, else from the environment, else from the file, each by itself."""
    path = _file(tmp_path, 'host = "file"\nport = 1\nwindow = 1\n')
    monkeypatch.setenv("BATCHMILL_PORT", "2")
    monkeypatch.setenv("BATCHMILL_WINDOW", "2")
    settings = load_settings({"settings": path, "window": 3})
    assert (settings.host, settings.port, settings.window) == ("file", 2, 3)


def test_the_environment_can_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BATCHMILL_SETTINGS` names the file where no flag does."""
    monkeypatch.setenv("BATCHMILL_SETTINGS", str(_file(tmp_path, "port = 1\n")))
    assert load_settings({}).port == 1


_TWO = (
    BackendSettings(url="http://gpu-1:8000/v1", models=("a", "b")),
    BackendSettings(url="https://gpu-2/v1"),
)


@pytest.mark.parametrize(
    "text",
    [
        'backend = ["http://gpu-1:8000/v1#a,b", "https://gpu-2/v1"]',
        '[[backend]]\nurl = "http://gpu-1:8000/v1"\nmodels = ["a", "b"]\n[[backend]]\nurl = "https://gpu-2/v1"',
    ],
)
def test_the_file_has_two_forms_for_backends(tmp_path: Path, text: str) -> None:
    """A backend of the file is `URL#models` or a table."""
    assert load_settings({"settings": _file(tmp_path, text)}).backends == _TWO


def test_the_environment_holds_backends_with_spaces_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """`BATCHMILL_BACKEND` holds any number of URLs."""
    monkeypatch.setenv("BATCHMILL_BACKEND", "http://gpu-1:8000/v1#a,b  https://gpu-2/v1")
    assert load_settings({}).backends == _TWO


def test_flags_replace_the_backends_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of two sources are not mixed."""
    monkeypatch.setenv("BATCHMILL_BACKEND", "http://other/v1")
    assert load_settings({"backend": ["http://gpu-1:8000/v1#a,b", "https://gpu-2/v1"]}).backends == _TWO


def test_each_backend_has_the_variable_of_its_key() -> None:
    """The names of the keys' variables go with the backends in their order; - stands for none."""
    settings = load_settings({"backend": ["http://gpu-1/v1", "http://gpu-2/v1"], "backend_key_env": ["-", "KEY_2"]})
    assert [backend.key_env for backend in settings.backends] == [None, "KEY_2"]


@pytest.mark.parametrize(("times", "each"), [(["45s"], [45.0, 45.0]), (["10s", "30m"], [10.0, 1800.0])])
def test_each_backend_has_its_time_limit(times: list[str], each: list[float]) -> None:
    """One time limit is for all backends, several go with them in their order."""
    settings = load_settings({"backend": ["http://gpu-1/v1", "http://gpu-2/v1"], "backend_timeout": times})
    assert [backend.timeout for backend in settings.backends] == each


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("2m", 120.0), ("1h", 3600.0), ("1500ms", 1.5), ("2.5", 2.5), ("0.5m", 30.0), ("1d", 86_400.0)],
)
def test_durations_are_read_with_their_units(text: str, seconds: float) -> None:
    """A duration is a number with ms, s, m, h or d; a bare number is seconds."""
    assert load_settings({"drain": text}).drain == seconds


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"port": 65536}, "port: "),
    ({"limits": "wide"}, "limits: "),
    ({"drain": "0s"}, "drain: "),
    ({"drain": "-1s"}, "drain: "),
    ({"drain": "1 day"}, "drain: '1 day' is not a duration such as 30s or 2m"),
    ({"lease": "0.5s"}, "lease: "),
    ({"window": 0}, "window: "),
    ({"retention": "0.5s"}, "retention: "),
    ({"backend": ["gpu-1:8000"]}, "backend.0.url: "),
    ({"backend": ["http://gpu-1", "http:///v1"]}, "backend.1.url: "),
    ({"backend": ["http://gpu-1"], "backend_key_env": ["A", "B"]}, "backend_key_env: "),
    ({"backend": ["http://gpu-1"], "backend_timeout": ["1s", "2s"]}, "backend_timeout: "),
    ({"backend_timeout": ["soon"]}, "backend_timeout.0: "),
    ({"on_unknown_outcome": "pray"}, "on_unknown_outcome: "),
    ({"transport": "pigeon"}, "transport: "),
    ({"colour": "red"}, "colour: "),
    ({"data": ""}, "data: is empty"),
    ({"host": ""}, "host: '' is no address"),
    ({"host": "a\0b"}, "host: 'a\\x00b' is no address"),
    ({"port": True}, "port: true and false are no numbers"),
    ({"window": True}, "window: true and false are no numbers"),
    ({"retention": True}, "retention: true and false are no durations"),
    ({"retention": float("inf")}, "retention: "),
    ({"retention": "9" * 400 + "d"}, "retention: "),
    ({"retention": "36501d"}, "retention: "),
    ({"backend": ["http://x y/v1"]}, "backend.0.url: 'http://x y/v1': paths are added to this URL"),
    ({"backend": ["http://u:p@x/v1?key=1"]}, "backend.0.url: 'x/v1?key=1': paths are added to this URL"),
    ({"backend": [{"url": "echo:", "models": [""]}]}, "backend.0.models.0: "),
    ({"limits_override": {"body_idle": float("inf")}}, "limits_override.body_idle: inf is no limit"),
    ({"limits_override": {"body_idle": float("nan")}}, "limits_override.body_idle: nan is no limit"),
]


@pytest.mark.parametrize(("flags", "beginning"), _WRONG)
def test_a_wrong_setting_is_named(flags: dict[str, Any], beginning: str) -> None:
    """The sentence begins with the name of the setting that is wrong."""
    with pytest.raises(BadSettings) as caught:
        load_settings(flags)
    assert str(caught.value).startswith(beginning)
    assert "\n" not in str(caught.value)


def test_all_wrong_settings_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One start is enough to learn of every mistake, wherever it was made."""
    monkeypatch.setenv("BATCHMILL_WINDOW", "none")
    flags = {"port": -1, "settings": _file(tmp_path, 'drain = "soon"\n')}
    with pytest.raises(BadSettings) as caught:
        load_settings(flags)
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {"port", "window", "drain"}


@pytest.mark.parametrize("text", ["port = [\n", "\x00"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    """What cannot be read as TOML is a wrong setting, not a fault of ours."""
    with pytest.raises(BadSettings, match=r"^settings: "):
        load_settings({"settings": _file(tmp_path, text)})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A file that was asked for and is missing is never passed over."""
    with pytest.raises(BadSettings, match="there is no file"):
        load_settings({"settings": tmp_path / "missing.toml"})


def test_settings_do_not_change() -> None:
    """Settings are frozen: every part of the program sees the same."""
    settings = load_settings({})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_a_file_that_the_environment_names_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file is refused whoever names it."""
    monkeypatch.setenv("BATCHMILL_SETTINGS", str(tmp_path / "missing.toml"))
    with pytest.raises(BadSettings, match="there is no file"):
        load_settings({})


def test_a_password_in_a_url_is_not_repeated() -> None:
    """What stands before the host of a bad URL is not in the sentence about it."""
    with pytest.raises(BadSettings) as caught:
        load_settings({"backend": ["ftp://user:hidden-word@host"]})
    assert "hidden-word" not in str(caught.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """A file that is no TOML is named, with the line."""
    path = tmp_path / "broken.toml"
    path.write_text("port = 1\nport =\n")
    with pytest.raises(BadSettings, match=r"broken\.toml: .*line 2"):
        load_settings({"settings": path})


def test_each_limit_can_be_set_over_the_profiles(tmp_path: Path) -> None:
    """`[limits_override]` changes what it names and leaves the profile's other limits; `none` takes a limit away."""
    text = (
        '[limits_override]\nmax_lines = 50000\nwindow_units = ["m", "h"]\nmodels_per_file = "none"\nwindow_min = 60\n'
    )
    path = _file(tmp_path, text)
    changed = {"max_lines": 50_000, "window_units": ("m", "h"), "models_per_file": None, "window_min": 60}
    assert limits_of(load_settings({"settings": path})) == replace(KIMI, **changed)
    assert limits_of(load_settings({"settings": path, "limits": "open"})) == replace(OPEN, **changed)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("max_line = 1", "max_line"),
        ("max_lines = true", "max_lines"),
        ('max_lines = "5"', "max_lines"),
        ("max_lines = 1.5", "max_lines"),
        ("max_lines = 1979-05-27", "max_lines"),
        ("max_lines = 0", "max_lines"),
        ("max_custom_id = -1", "max_custom_id"),
        ('max_custom_id = "none"', "max_custom_id"),
        ("max_depth = 501", "max_depth"),
        ("window_min = 604801", "window_min"),
        ("window_max = 43199", "window_min"),
        ("batches_page = 101", "batches_page"),
        ("expires_after_min = 9999999", "expires_after_min"),
        ('window_units = ["w"]', "window_units"),
        ("window_units = []", "window_units"),
        ("window_units = 5", "window_units"),
        ('endpoints = ["/v1/embeddings"]', "default_endpoint"),
        ('extension = ""', "extension"),
    ],
)
def test_a_limit_that_makes_no_sense_is_named(tmp_path: Path, text: str, name: str) -> None:
    """An unknown limit, one of the wrong type and one that contradicts another are wrong settings."""
    with pytest.raises(BadSettings, match=rf"^limits_override\.{name}: "):
        load_settings({"settings": _file(tmp_path, f"[limits_override]\n{text}\n")})


def test_limits_that_contradict_another_profile_are_named(tmp_path: Path) -> None:
    """`batchmill run` takes the open profile by itself; what does not go together with that is no fault of ours."""
    path = _file(tmp_path, "[limits_override]\nwindow_max = 59\nwindow_min = 58\n")
    settings = load_settings({"settings": path}).model_copy(update={"limits_override": {"window_max": 59}})
    with pytest.raises(BadSettings, match=r"^limits_override\.window_min: "):
        limits_of(settings)


def test_models_are_configured_by_name(tmp_path: Path) -> None:
    """`[models."NAME"]` says what there is to say of a model; what is not set is not shown."""
    text = """
        [models."org/big"]
        aliases = ["big"]
        batch = false
        locked = {n = 1, temperature = [1.0, 0.6]}
        owned_by = "us"
        context_length = 4096
        supports_image_in = true
        supports_reasoning = false
    """
    facts = load_settings({"settings": _file(tmp_path, text)}).catalogue.facts("big")
    assert (facts.name, facts.aliases, facts.batch, facts.owned_by) == ("org/big", ("big",), False, "us")
    assert facts.locked == {"n": [1], "temperature": [1.0, 0.6]}
    assert facts.extras == {"context_length": 4096, "supports_image_in": True, "supports_reasoning": False}


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ('[models.m]\ncolour = "red"', "models.m.colour: "),
        ('[models.m]\nbatch = "no"', "models.m.batch: "),
        ("[models.m]\nbatch = 0", "models.m.batch: "),
        ("[models.m]\ncontext_length = 0", "models.m.context_length: "),
        ('[models.m]\naliases = [""]', "models.m.aliases.0: "),
        ("[models.m.locked]\nn = {a = 1}", "models.m.locked.n"),
        ('[models.m]\naliases = ["n"]\n[models.n]\n', "models.m.aliases: "),
        ("[models.m]\nprice = 1", "models.m.price: "),
        ("[models.m]\nprice = {input = 1}", "models.m.price.output: "),
        ("[models.m]\nprice = {input = 1, output = 1, outptu = 1}", "models.m.price.outptu: "),
        ("[models.m]\nprice = {input = -1, output = 1}", "models.m.price.input: "),
        ("[models.m]\nprice = {input = true, output = 1}", "models.m.price.input: is no number"),
        ('[models.m]\nprice = {input = "1", output = 1}', "models.m.price.input: is no number"),
        ("[models.m]\nprice = {input = nan, output = 1}", "models.m.price.input: "),
        ("[models.m]\nprice = {input = inf, output = 1}", "models.m.price.input: "),
        ("[models.m]\nprice = {input = 1e12, output = 1}", "models.m.price.input: "),
        ("[models.m]\nprice = {input = 1, output = 1e-10}", "models.m.price.output: "),
        ('[models.m]\naliases = ["x"]\n[models.n]\naliases = ["x"]\n', "models.n.aliases: "),
    ],
)
def test_a_model_that_is_configured_wrongly_is_named(tmp_path: Path, text: str, beginning: str) -> None:
    """The sentence begins with the model's name and what is wrong about it."""
    with pytest.raises(BadSettings) as caught:
        load_settings({"settings": _file(tmp_path, text)})
    assert str(caught.value).startswith(beginning)


def test_prices_are_read_as_they_are_written(tmp_path: Path) -> None:
    """A tenth is a tenth, not the binary number beside it; one currency is for all, dollars by default."""
    text = '[models."org/big"]\nprice = {input = 0.1, cached = 0.025, output = 2}\n[models.small]\n'
    settings = load_settings({"settings": _file(tmp_path, 'currency = "CNY"\n' + text)})
    price = Price(input=Decimal("0.1"), cached=Decimal("0.025"), output=Decimal(2))
    assert settings.catalogue.facts("org/big").price == price
    assert settings.catalogue.facts("small").price is None
    cost = settings.catalogue.cost({"org/big": Usage(output_tokens=500_000)})
    assert cost == Cost(amount=Decimal(1), currency="CNY")
    assert load_settings({}).currency == "USD"


def test_prices_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are JSON there, as they are for every other fact of theirs."""
    monkeypatch.setenv("BATCHMILL_MODELS", '{"m": {"price": {"input": 0.3, "output": 1}}}')
    assert load_settings({}).catalogue.facts("m").price == Price(input=Decimal("0.3"), output=Decimal(1))


@pytest.mark.parametrize("currency", ["", "usd", "$", "EURO", "USD\n"])
def test_a_currency_has_three_capital_letters(currency: str) -> None:
    """What is no code of ISO 4217's form is refused in one sentence that names the setting."""
    with pytest.raises(BadSettings, match=r"^currency: [^\n]+$"):
        load_settings({"currency": currency})


def test_media_must_be_public_where_it_is_said(tmp_path: Path) -> None:
    """`media_urls` is a limit like others; by default a URL is the backend's business."""
    assert limits_of(load_settings({})).media_urls == "any"
    path = _file(tmp_path, 'media_urls = "public"\n')
    assert limits_of(load_settings({"settings": path, "limits": "open"})) == replace(OPEN, media_urls="public")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [({}, WireTransport), ({"transport": "own"}, WireTransport), ({"transport": "aiohttp"}, AiohttpTransport)],
)
def test_the_carrier_of_requests_is_chosen(flags: dict[str, str], kind: type) -> None:
    """Requests are carried by our own HTTP/1.1, or by aiohttp where that is asked for."""
    settings = load_settings({"backend": ["http://gpu-1/v1"], **flags})
    ((backend, _),) = build_backends(settings=settings, engine=None, clock=FakeClock())
    assert isinstance(backend, HttpBackend)
    assert isinstance(backend._transport, kind)  # no public name tells, and nothing on the wire either


def test_embeddings_are_packed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default each line is a call of its own; the setting puts packs before every backend, which keeps its name."""
    monkeypatch.setenv("BATCHMILL_BACKEND", "http://gpu-1/v1 echo:")
    plain = build_backends(settings=load_settings({}), engine=None, clock=FakeClock())
    assert [type(backend) for backend, _ in plain] == [HttpBackend, EchoBackend]
    monkeypatch.setenv("BATCHMILL_PACK_EMBEDDINGS", "true")
    packing = build_backends(settings=load_settings({}), engine=None, clock=FakeClock())
    assert [type(backend) for backend, _ in packing] == [PackingBackend] * 2
    assert [backend.name for backend, _ in packing] == ["http://gpu-1/v1", "echo:"]


def test_a_window_is_found_within_the_descriptors_of_the_process() -> None:
    """Ten backends cannot each have more connections than the system gives a process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (628, before[1]))
    try:
        assert connections_of(10) == 50
        assert connections_of(1000) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_settings_reach_the_processes_of_serve(tmp_path: Path) -> None:
    """What is set of a model's price is the same in the order that a child process reads."""
    path = _file(tmp_path, '[models."m"]\nprice = { input = 0.05, cached = 0.000000001, output = 1000 }\n')
    settings = load_settings({"settings": path})
    order = settings.model_dump_json()
    assert Settings.model_validate_json(order) == settings
