"""Which Backend gets which line."""

from hypothesis import given
from hypothesis import strategies as st

from batchmill.schedule.placement import Placement


def placed(prefixes: list[int]) -> Placement[int]:
    """Return lines numbered in their order, with these prefixes."""
    placement: Placement[int] = Placement()
    for line, prefix in enumerate(prefixes):
        placement.add(line, prefix)
    return placement


def well_known(lines: int, answered: int, *, every: int) -> Placement[int]:
    """Return lines of two backends of which so many are answered, one in so many by the second one."""
    placement = placed([0] * lines)
    for turn in range(answered):
        backend = int(turn % every == 0)
        assert placement.take(backend) is not None
        placement.ended(backend)
    return placement


def test_a_group_goes_to_one_backend() -> None:
    """Who took its first line gets the rest, and then the next group that nobody has."""
    placement = placed([7, 7, 7, 8, 8, 9, 9])
    assert [placement.take(0), placement.take(1), placement.take(0), placement.take(1)] == [0, 3, 1, 4]
    assert [placement.take(1), placement.take(0), placement.take(1)] == [5, 2, 6]
    assert placement.take(0) is None
    assert len(placement) == 0


def test_lines_that_share_nothing_go_to_whoever_has_room() -> None:
    """They are handed out one by one, in their order, between groups too."""
    placement = placed([0, 0, 7, 7, 0])
    assert [placement.take(0), placement.take(1), placement.take(0)] == [0, 1, 2]
    assert [placement.take(1), placement.take(0), placement.take(0)] == [4, 3, None]


def test_an_idle_backend_steals_from_the_far_end() -> None:
    """It takes half of what the largest group of another still has, the last lines, in their order."""
    placement = placed([7] * 9 + [8] * 2)
    assert [placement.take(0), placement.take(1), placement.take(1)] == [0, 9, 10]
    assert [placement.take(2) for _ in range(4)] == [5, 6, 7, 8]
    assert [placement.take(0), placement.take(1), placement.take(1)] == [1, 3, 4]


def test_a_backend_that_takes_nothing_holds_nothing_up() -> None:
    """What an unwell one has begun is stolen by others to the last line."""
    placement = placed([7] * 5)
    assert placement.take(0) == 0
    assert sorted(placement.take(1) or -1 for _ in range(4)) == [1, 2, 3, 4]
    assert placement.take(1) is None


def test_a_group_that_goes_on_goes_on() -> None:
    """Lines that are claimed later join their group, in front or in hand."""
    placement = placed([7, 7, 8])
    placement.add(3, 8)
    assert [placement.take(0), placement.take(1), placement.take(0)] == [0, 2, 1]
    assert placement.take(1) == 3
    placement.add(4, 8)
    placement.add(5, 0)
    assert [placement.take(0), placement.take(1)] == [5, 4]


def test_towards_the_end_nobody_hoards() -> None:
    """A backend that has answered a fifth of the lines has at most a fifth of those that are not answered."""
    placement = well_known(600, 500, every=5)
    assert placement.take(0) is not None
    taken = [placement.take(1) for _ in range(100)]
    assert sum(line is not None for line in taken) == 20
    assert sum(placement.take(0) is not None for _ in range(100)) == 79


def test_before_anybody_is_known_nobody_is_held_back() -> None:
    """While there are few answers a backend gets what it asks for, and an idle one gets a line in any case."""
    placement = placed([0] * 300)
    assert all(placement.take(0) is not None for _ in range(130))
    for _ in range(129):
        placement.ended(0)
    assert placement.take(1) == 130
    assert placement.take(1) is None
    assert placement.take(0) == 131


@given(st.lists(st.integers(0, 3)), st.integers(1, 4), st.data())
def test_every_line_is_taken_once(prefixes: list[int], backends: int, data: st.DataObject) -> None:
    """By whoever asks, in whatever turns."""
    placement = placed(prefixes)
    taken = []
    for left in range(len(prefixes), 0, -1):
        assert len(placement) == left
        taken.append(placement.take(data.draw(st.integers(0, backends - 1))))
    assert sorted(taken) == list(range(len(prefixes)))


def test_who_is_away_holds_nobody_back() -> None:
    """One with nothing in flight does not count: else the other would send fewer and fewer lines at the end."""
    placement = well_known(600, 500, every=2)
    assert [placement.take(0) for _ in range(100)] == list(range(500, 600))


def test_a_line_that_is_taken_back_goes_first() -> None:
    """It goes to whoever has room, before the lines that have not been sent yet."""
    placement = placed([7, 7, 8])
    assert placement.take(0) == 0
    placement.ended(0)
    placement.put_back(0)
    assert len(placement) == 3
    assert [placement.take(1), placement.take(1), placement.take(0)] == [0, 2, 1]


def test_slots_with_caches_of_their_own_get_a_group_each() -> None:
    """Lines of so many groups go side by side; the next one is of the group whose line has ended."""
    placement = placed([7] * 3 + [8] * 3 + [9] * 3)
    assert [placement.take(0, side_by_side=2) for _ in range(2)] == [0, 3]
    placement.ended(0, 8)
    assert placement.take(0, side_by_side=2) == 4
    placement.ended(0, 7)
    assert placement.take(0, side_by_side=2) == 1
    placement.ended(0, 7)
    assert placement.take(0, side_by_side=2) == 2  # the last of its group: the next one takes its place
    placement.ended(0, 7)
    assert placement.take(0, side_by_side=2) == 6


def test_a_group_side_by_side_is_not_stolen_for() -> None:
    """A Backend with lines of its own takes no other's to fill its slots."""
    placement = placed([7] * 4 + [8] * 4)
    assert [placement.take(0), placement.take(1)] == [0, 4]
    assert [placement.take(1, side_by_side=4) for _ in range(3)] == [5, 6, 7]
    assert placement.take(1, side_by_side=4) == 2


def test_a_line_of_its_own_goes_beside_a_group() -> None:
    """Where there is room for another group, a line that shares nothing takes it for one turn."""
    placement = placed([7, 7, 0, 8])
    assert [placement.take(0, side_by_side=2) for _ in range(4)] == [0, 2, 3, 1]


def test_before_the_end_nobody_is_held_back() -> None:
    """As long as there is more than what is in hand, a slow backend may have as much in flight as it takes."""
    placement = well_known(600, 500, every=5)
    assert placement.take(0) is not None
    assert all(placement.take(1, is_end=False) is not None for _ in range(90))


def test_a_refusal_is_no_answer() -> None:
    """What a backend has not answered gives it no share of the rest."""
    placement = placed([0] * 600)
    for _ in range(250):
        assert placement.take(0) is not None
        placement.ended(0, answered=False)
        assert placement.take(1) is not None
        placement.ended(1)
    assert placement.take(0) is not None
    assert all(placement.take(1) is not None for _ in range(90))


def test_who_hangs_restrains_nobody() -> None:
    """One that has answered ten times as fast, and is silent while the other goes on, has no share any more."""
    placement = well_known(2400, 2200, every=11)
    assert all(placement.take(0) is not None for _ in range(8))  # and is not heard of again
    for _ in range(4):
        assert placement.take(1) is not None
        placement.ended(1)
    assert all(placement.take(1) is not None for _ in range(100))


def test_what_was_stolen_is_not_paid_back_twice() -> None:
    """The end of a line that went before its group was stolen counts in one group only."""
    placement = placed([7] * 8)
    assert [placement.take(0), placement.take(1), placement.take(1)] == [0, 4, 5]
    placement.ended(1, 7)
    placement.ended(1, 7)
    placement.ended(0, 7)
    assert sorted(placement.take(number % 2, side_by_side=2) or -1 for number in range(5)) == [1, 2, 3, 6, 7]


def test_what_one_that_leaves_holds_goes_to_the_others() -> None:
    """In the order of the Plan, before all that nobody has begun; what it has out ends as ever."""
    placement = placed([7, 7, 7, 8, 8, 9])
    assert [placement.take(0), placement.take(1)] == [0, 3]
    placement.leave(0)
    placement.leave(2)
    placement.ended(0, 7)
    assert [placement.take(1) for _ in range(4)] == [4, 1, 2, 5]
    assert len(placement) == 0
