"""What the policy is worth on simulated engines, in virtual time: ratios, the same on every machine."""

import makespan
import pytest

SUITES = [
    (name, engines, gauges) for name in "ABC" for engines in (1, 4) for gauges in (True, False)
]  # D: in the bench
CAPACITIES = [4, 16, 64, 256]  # and 1,024 in bench/makespan.py


@pytest.mark.parametrize(("name", "engines", "gauges"), SUITES)
def test_a_suite_takes_little_longer_than_it_must(name: str, engines: int, gauges: bool) -> None:
    """Makespan / lower bound, and tokens computed / the least, with nothing configured."""
    found = makespan.ordered(name, engines, gauges=gauges, seed=1)
    assert found.makespan <= makespan.MAKESPAN[name]
    assert found.computed <= makespan.COMPUTED[engines]


@pytest.mark.parametrize("name", ["A", "C"])
def test_the_files_order_would_take_twice_as_long(name: str) -> None:
    """What grouping and placement are for: without them prefixes are computed again and again."""
    plain = makespan.ordered(name, 4, gauges=True, seed=1, in_file_order=True)
    assert plain.makespan > 1.6 * makespan.ordered(name, 4, gauges=True, seed=1).makespan
    assert plain.computed > 3


def test_an_even_suite_keeps_its_order() -> None:
    """Where nothing is shared and nothing uneven, ordering costs nothing: D comes as it is, near its bound."""
    found = makespan.ordered("D", 1, gauges=True, seed=1)
    plain = makespan.ordered("D", 1, gauges=True, seed=1, in_file_order=True)
    assert found == plain
    assert found.makespan <= makespan.MAKESPAN["D"]


@pytest.mark.parametrize("gauges", [True, False])
@pytest.mark.parametrize("slots", CAPACITIES)
@pytest.mark.parametrize("kind", ["B", "D"])
def test_a_cold_start_costs_little(kind: str, slots: int, gauges: bool) -> None:
    """With nothing configured a batch takes at most 5 % longer than with the best fixed window, whatever the engine."""
    assert makespan.window_found(kind, slots, step=None, gauges=gauges, seed=1) <= 1.05


@pytest.mark.parametrize("step", [0.5, 2.0])
@pytest.mark.parametrize("gauges", [True, False])
@pytest.mark.parametrize("slots", CAPACITIES)
def test_a_change_of_capacity_is_followed(slots: int, gauges: bool, step: float) -> None:
    """The same when the engine becomes half or twice as large in the middle of the batch."""
    assert makespan.window_found("D", slots, step=step, gauges=gauges, seed=1) <= 1.05


def test_visitors_wait_little_beside_a_batch() -> None:
    """Others' p99 to the first token is at most 4 times theirs alone, at 97 % of the best throughput."""
    wait, throughput = makespan.beside_visitors(polite=False, gauges=True, seed=1)
    assert wait <= 4.0
    assert throughput >= 0.97


@pytest.mark.parametrize("gauges", [True, False])
def test_visitors_hardly_wait_beside_a_polite_batch(gauges: bool) -> None:
    """With `polite` it is at most 2.7 times, at 80 % of the throughput, whether the engine shows its gauges or not."""
    wait, throughput = makespan.beside_visitors(polite=True, gauges=gauges, seed=1)
    assert wait <= 2.7
    assert throughput >= 0.8
