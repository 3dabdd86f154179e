"""When a group commit starts."""

from batchmill.engine.group import Group, GroupBounds


def _group() -> Group:
    return Group(bounds=GroupBounds(results=3, bytes=100, wait=0.25, gap=0.05, most_results=5, most_bytes=1000))


def test_an_empty_group_is_never_due() -> None:
    """Without a Result there is nothing to commit."""
    assert _group().due() is None


def test_a_single_result_waits() -> None:
    """A group is due 250 ms after its first Result."""
    group = _group()
    group.add(size=1, slice_ended=False, now=10.0)
    group.add(size=1, slice_ended=False, now=10.2)
    assert group.due() == 10.25


def test_a_full_group_is_due_at_once() -> None:
    """Enough Results, enough bytes, or the end of a Slice make it due at once."""
    by_count, by_bytes, by_end = _group(), _group(), _group()
    for _ in range(3):
        by_count.add(size=1, slice_ended=False, now=10.0)
    by_bytes.add(size=100, slice_ended=False, now=10.0)
    by_end.add(size=1, slice_ended=True, now=10.0)
    assert [group.due() for group in (by_count, by_bytes, by_end)] == [10.0] * 3


def test_commits_keep_a_gap() -> None:
    """The next one starts no sooner than 50 ms after the last one started."""
    group = _group()
    group.add(size=1, slice_ended=True, now=10.0)
    group.start(10.0)
    assert group.due() is None
    group.add(size=1, slice_ended=True, now=10.01)
    assert group.due() == 10.05


def test_sending_pauses_at_the_bound() -> None:
    """A group is full at its bound of Results or bytes, those that are being committed included."""
    group = _group()
    for _ in range(5):
        group.add(size=1, slice_ended=False, now=10.0)
    assert group.is_full
    group.start(10.0)
    assert group.is_full
    group.stood()
    assert not group.is_full
    group.add(size=1000, slice_ended=False, now=10.0)
    assert group.is_full


def test_a_failed_commit_is_tried_again_after_a_pause() -> None:
    """What could not be made durable for want of space waits a second and counts all the while."""
    group = _group()
    for _ in range(5):
        group.add(size=1, slice_ended=True, now=10.0)
    group.start(10.0)
    group.failed(10.5)
    assert group.is_full
    assert group.due() == 11.55
