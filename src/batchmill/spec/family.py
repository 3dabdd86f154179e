"""A batch and those that retry it: which Results are wanted of each, and what is left to be retried.

Each failed line is retried by one child at most. A child says which it has by their error groups alone, or by those
that it left out; so no list of lines is kept. A child that ended before it had any lines (its validation failed, or was
cancelled) is void: what it had can be retried again. Whether one will be void is not known when the next is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

from batchmill.spec.groups import group_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which Results: those that succeeded, those that failed; of these the ones of some error groups, or not of some.

    `groups` is None for all groups.
    """

    succeeded: bool = True
    failed: bool = True
    groups: frozenset[str] | None = None
    besides: frozenset[str] = frozenset()

    @property
    def is_all(self) -> bool:
        """Whether it is every Result."""
        return self.succeeded and self.failed and not self.reads

    @property
    def reads(self) -> bool:
        """Whether a failed line has to be read for it."""
        return self.failed and (self.groups is not None or bool(self.besides))

    def kind(self, *, failed: bool) -> bool:
        """Say whether any such Results are wanted."""
        return self.failed if failed else self.succeeded

    def takes(self, *, failed: bool, text: bytes) -> bool:
        """Say whether this Result is wanted; a failed one that cannot be read (one nested too deep) is in no group."""
        if not self.kind(failed=failed):
            return False
        if not (failed and self.reads):
            return True
        try:
            group = group_of(text)[1].id
        except ValueError:
            return self.groups is None
        return group not in self.besides and (self.groups is None or group in self.groups)

    def within(self, other: "Wanted") -> "Wanted":
        """Return what both want."""
        groups = self.groups
        if groups is None or other.groups is None:
            groups = other.groups if groups is None else groups
        else:
            groups &= other.groups
        besides = self.besides | other.besides
        if groups is not None:
            groups, besides = groups - besides, frozenset()
        none = groups is not None and not groups
        return Wanted(
            succeeded=self.succeeded and other.succeeded,
            failed=self.failed and other.failed and not none,
            groups=None if none else groups,
            besides=besides,
        )

    def without(self, taken: "Wanted") -> "Wanted":
        """Return what is left when of the failed ones those are taken that another wants."""
        if taken.groups is None:
            return self.within(Wanted(groups=taken.besides))
        return self.within(Wanted(besides=taken.groups))


FAILED = Wanted(succeeded=False)
NOTHING = Wanted(succeeded=False, failed=False)
_BUT = "-"


def taken_text(taken: Wanted) -> str | None:
    """Return how it is written down which of its parent's failed lines a child has; None for all."""
    if taken.groups is not None:
        return ",".join(sorted(taken.groups))
    return _BUT + ",".join(sorted(taken.besides)) if taken.besides else None


def parse_taken(text: str | None) -> Wanted:
    """Return which failed lines a child has."""
    if text is None:
        return FAILED
    groups = frozenset(text.removeprefix(_BUT).split(","))
    return replace(FAILED, besides=groups) if text.startswith(_BUT) else replace(FAILED, groups=groups)


class Child(NamedTuple):
    """A batch that retries another: its id, which of that one's failed lines it has, and if it ended without any."""

    id: str
    taken: Wanted
    is_void: bool


def left_to_retry(children: Sequence[Child], wanted: Wanted) -> Wanted:
    """Return those of the wanted failed lines that no child has."""
    return reduce(Wanted.without, (child.taken for child in children if not child.is_void), wanted)


def still_shown(children: Sequence[Child]) -> Wanted:
    """Return which Results of a parent are shown beside its children's: all but the failed lines that one has."""
    return reduce(Wanted.without, (child.taken for child in children), Wanted())


def shown_in_place(children: Sequence[Child], child: Child) -> Wanted:
    """Return which Results of the parent are shown where a void child's would be: the lines that it had last."""
    later = children[children.index(child) + 1 :]
    return reduce(Wanted.without, (each.taken for each in later), child.taken)
