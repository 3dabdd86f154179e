"""A batch and those that retry it: which Results are wanted of each, and what is left to be retried.

Each failed line is retried by one child at most. A child says which it has by its error group alone, None for all that
were left when it was made; so no list of lines is kept. A child that ended before it had any lines (its validation
failed, or was cancelled) is void: what it had can be retried again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        """Say whether this Result is wanted."""
        if not self.kind(failed=failed):
            return False
        if not (failed and self.reads):
            return True
        group = group_of(text)[1].id
        return group not in self.besides and (self.groups is None or group in self.groups)

    def within(self, other: "Wanted") -> "Wanted":
        """Return what both want."""
        groups = self.groups
        if groups is None or other.groups is None:
            groups = other.groups if groups is None else groups
        else:
            groups &= other.groups
        return Wanted(
            succeeded=self.succeeded and other.succeeded,
            failed=self.failed and other.failed,
            groups=groups,
            besides=self.besides | other.besides,
        )


FAILED = Wanted(succeeded=False)
NOTHING = Wanted(succeeded=False, failed=False)


class Child(NamedTuple):
    """A batch that retries another: its id, which of that one's failed lines it has, and if it ended without any."""

    id: str
    group: str | None
    is_void: bool


def left_to_retry(children: Sequence[Child], group: str | None) -> Wanted | None:
    """Return the failed lines of a group, or None for all, that no child has; None if the children have them all."""
    taken = {child.group for child in children if not child.is_void}
    if None in taken or group in taken:
        return None
    if group is not None:
        return replace(FAILED, groups=frozenset({group}))
    return replace(FAILED, besides=frozenset(each for each in taken if each is not None))


def still_shown(children: Sequence[Child]) -> Wanted:
    """Return which Results of a parent are shown beside its children's: all but the failed lines that one has."""
    taken = {child.group for child in children}
    if None in taken:
        return Wanted(failed=False)
    return Wanted(besides=frozenset(each for each in taken if each is not None))


def shown_in_place(children: Sequence[Child], child: Child) -> Wanted:
    """Return which Results of the parent are shown where a void child's would be: the lines that it had last."""
    at = children.index(child)
    later = {each.group for each in children[at + 1 :]}
    if None in later:
        return NOTHING
    others = later | {each.group for each in children[:at] if not each.is_void}
    besides = frozenset(each for each in others if each is not None)
    return replace(FAILED, groups=None if child.group is None else frozenset({child.group}), besides=besides)
