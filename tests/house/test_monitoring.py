"""The Grafana dashboard and the alert rules: every number and label that they name is one that `/metrics` tells."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from batchmill.api.metrics import MetricsApp
from batchmill.schedule.forecast import FADE_SECONDS
from batchmill.store.database import SqliteDatabase, Transaction
from batchmill.store.migrate import migrate
from batchmill.store.model import BackendState, save_backend
from batchmill.store.tables import batch
from batchmill.telemetry import Metrics
from fakeclock import FakeClock
from store.rows import add_organisations, add_running

_DEPLOY = Path(__file__).parents[2] / "deploy"
_SCRAPED = {"instance", "job"}  # labels that Prometheus itself adds


@pytest.fixture
async def told(tmp_path: Path) -> Mapping[str, set[str]]:
    """Every number that `/metrics` can tell, and its labels, over real HTTP's own text."""
    clock = FakeClock()
    database = SqliteDatabase(path=tmp_path / "rows.sqlite3", clock=clock)

    def statements(tx: Transaction) -> None:
        migrate(tx)
        add_organisations(tx)
        add_running(tx)
        known = {"recent_lines": FADE_SECONDS, "recent_seconds": FADE_SECONDS, "counted_at": clock.boot()}
        tx.connection.execute(batch.update().values(known))
        save_backend(tx, BackendState(name="http://a", well=True, reason=None, since=1))

    await database.write(statements)
    metrics = Metrics()
    for each in vars(metrics).values():
        if isinstance(each, Counter | Gauge | Histogram) and each._labelnames:
            each.labels(*each._labelnames)
    app: Any = MetricsApp(metrics=metrics, database=database, clock=clock, folder=tmp_path)
    text = TestClient(app).get("/metrics").text
    await database.close()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def _rules() -> Iterator[tuple[str, str]]:
    for group in yaml.safe_load((_DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def _panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads((_DEPLOY / "grafana" / "batchmill.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def _parts(node: Any) -> Iterator[Any]:  # noqa: ANN401 - the parser has no types
    """Yield a node of an expression and all below it."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        below = getattr(node, name, None)
        if below is not None and not isinstance(below, str | int | float):
            yield from _parts(below)
    for argument in getattr(node, "args", None) or ():
        yield from _parts(argument)


@pytest.mark.parametrize(("where", "text"), [*_rules(), *_panels()])
async def test_what_is_asked_for_is_told(told: Mapping[str, set[str]], where: str, text: str) -> None:
    """Each expression is PromQL; its numbers exist, and so do the labels it selects or groups by."""
    parts = list(_parts(promql_parser.parse(text)))
    selectors = [part for part in parts if isinstance(part, promql_parser.VectorSelector)]
    assert selectors, where
    labels: set[str] = set()
    for selector in selectors:
        assert selector.name in told, (where, selector.name)
        labels |= told[selector.name]
        assert {matcher.name for matcher in selector.matchers.matchers} <= told[selector.name] | _SCRAPED, where
    for part in parts:
        grouped = getattr(getattr(part, "modifier", None), "labels", None) or ()
        assert set(grouped) <= labels | _SCRAPED, where


@pytest.mark.parametrize(("alert", "text"), list(_rules()))
def test_what_an_alert_selects_is_told_from_the_start(alert: str, text: str) -> None:
    """A counter that is there only once it has counted has no increase: the first failures would wake nobody."""
    told = {(s.name, *sorted(s.labels.items())) for family in Metrics().registry.collect() for s in family.samples}
    for part in _parts(promql_parser.parse(text)):
        if isinstance(part, promql_parser.VectorSelector) and part.matchers.matchers:
            wanted = {matcher.name: matcher.value for matcher in part.matchers.matchers}
            assert (part.name, *sorted(wanted.items())) in told, alert


def test_an_alert_of_a_single_event_does_not_wait() -> None:
    """What increased once is above nothing for as long as the window looks back: a wait as long would never end."""
    for group in yaml.safe_load((_DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            if rule["expr"].endswith("> 0") and "[" in rule["expr"]:
                assert "for" not in rule, rule["alert"]


def test_every_alert_says_what_to_do() -> None:
    """A name of its own, a severity, a summary and a description: whoever is woken reads these first."""
    groups = yaml.safe_load((_DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}


async def test_every_number_of_ours_is_on_the_dashboard_or_in_an_alert(told: Mapping[str, set[str]]) -> None:
    """What is told is looked at: a number that nobody would see is left out, or shown."""
    asked = " ".join(text for _, text in (*_rules(), *_panels()))
    suffixes = ("_created", "_bucket", "_sum", "_count")
    names = {name.removesuffix("_total") for name in told if not name.endswith(suffixes)}
    assert {name for name in names if name not in asked} == set()


def test_panels_do_not_overlap() -> None:
    """Each panel has a place and an id of its own, within Grafana's 24 columns."""
    panels = json.loads((_DEPLOY / "grafana" / "batchmill.json").read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
