"""Which backends the settings and an operator give."""

import resource

import pytest

from batchmill.assemble.backends import added_lane, backend_name, build_backends
from batchmill.assemble.storage import build_clock
from batchmill.backends.backend import Backend
from batchmill.settings import load_settings
from batchmill.store.roster import Entry


async def test_an_added_backend_has_its_name_and_its_window() -> None:
    """It is called as `backend_name` says, is noted to be closed, and takes its own window or a found one."""
    backends: list[tuple[Backend, int | None]] = []
    for window in (7, None):
        entry = Entry(name="http://gpu-1/v1", url="http://gpu-1/v1", models=("m",), window=window)
        lane = added_lane(
            entry, backends=backends, lanes=[], settings=load_settings({}), alone=True, clock=build_clock()
        )
        assert lane.backend.name == backend_name("http://gpu-1/v1")
        assert (lane.pace.most == lane.pace.window) == (window is not None)
        assert backends[-1] == (lane.backend, window)
    for backend, _ in backends:
        await backend.close()


async def test_removed_backends_take_no_connections_from_those_added() -> None:
    """However many have come and gone, one that is alone may have all connections of the process."""
    backends: list[tuple[Backend, int | None]] = []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (628, before[1]))
    try:
        for _ in range(5):
            entry = Entry(name="http://gpu-1/v1", url="http://gpu-1/v1", models=("m",))
            lane = added_lane(
                entry, backends=backends, lanes=[], settings=load_settings({}), alone=True, clock=build_clock()
            )
            assert lane.pace.most == 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for backend, _ in backends:
        await backend.close()


def test_an_added_backend_whose_key_is_not_here_is_told() -> None:
    """The variable that should hold the key is named."""
    entry = Entry(name="http://gpu-1/v1", url="http://gpu-1/v1", key_env="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="NO_SUCH_KEY"):
        added_lane(entry, backends=[], lanes=[], settings=load_settings({}), alone=True, clock=build_clock())


def test_echo_backends_share_one_name() -> None:
    """What they are told in their URL is no part of their name."""
    settings = load_settings({"backend": ["echo:?latency_ms=5"]})
    ((backend, _),) = build_backends(settings=settings, engine=None, clock=build_clock())
    assert backend.name == backend_name("echo:?latency_ms=9") == "echo:"
