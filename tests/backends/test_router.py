import pytest

from batchmill.backends.echo import EchoBackend
from batchmill.backends.router import Router
from fakeclock import FakeClock


@pytest.fixture
def backends(clock: FakeClock) -> list[EchoBackend]:
    """Three of them."""
    return [EchoBackend(clock=clock) for _ in range(3)]


def test_before_anything_is_learnt_nobody_serves(backends: list[EchoBackend]) -> None:
    """A router starts without models."""
    router = Router(backends)

    assert router.serving("a") == ()
    assert frozenset() == router.models()


def test_every_backend_with_the_model_serves_it(backends: list[EchoBackend]) -> None:
    """Backends are listed in the order in which they were given, whenever they answered."""
    one, two, three = backends
    router = Router(backends)
    router.learn(three, ["a", "b"])
    router.learn(one, ["a"])
    router.learn(two, ["c"])

    assert (one, three) == router.serving("a")
    assert (three,) == router.serving("b")
    assert router.serving("d") == ()
    assert {"a", "b", "c"} == router.models()


def test_the_latest_word_of_a_backend_counts(backends: list[EchoBackend]) -> None:
    """A model that is listed no more is served no more."""
    router = Router(backends)
    router.learn(backends[0], ["a"])
    router.learn(backends[0], ["b"])

    assert router.serving("a") == ()
    assert {"b"} == router.models()


def test_a_strange_backend_is_an_error(backends: list[EchoBackend], clock: FakeClock) -> None:
    """Only the backends that it was made with can be learnt about."""
    with pytest.raises(KeyError, match="echo:"):
        Router(backends).learn(EchoBackend(clock=clock), ["a"])


def test_backends_come_and_go(clock: FakeClock) -> None:
    """One that comes is asked like the others; of one that has gone nothing is known."""
    first, second = EchoBackend(clock=clock), EchoBackend(clock=clock)
    router = Router([first])
    router.learn(first, ["a"])
    router.add(second)
    router.add(first)
    router.learn(second, ["a", "b"])
    assert router.serving("a") == (first, second)
    router.forget(first)
    assert (router.serving("a"), router.models()) == ((second,), frozenset("ab"))
    with pytest.raises(KeyError):
        router.forget(first)
