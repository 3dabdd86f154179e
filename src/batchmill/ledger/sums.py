"""What the Results of a batch come to, beside counts and tokens: retries, shares of backends, errors by cause."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from batchmill.ledger.segment import Result
from batchmill.spec.groups import Cause, ErrorGroup, group_of
from batchmill.spec.objects import Usage
from batchmill.spec.progress import IDS_KEPT, Errors, Share
from batchmill.spec.usage import total_tokens


def retries_of(results: Iterable[Result]) -> int:
    """Return the sends of lines beyond their first."""
    return sum(result.attempts - 1 for result in results if result.attempts > 1)


def shares_of(results: Sequence[Result], *, usage: Usage) -> list[Share]:
    """Return what each backend has done of these Results, which come to `usage`.

    A line that no backend had the last word on, as one that got its twin's answer, is in no share.
    """
    by_backend: defaultdict[str | None, list[Result]] = defaultdict(list)
    for result in results:
        by_backend[result.backend].append(result)
    shares: list[Share] = []
    for backend, mine in by_backend.items():
        if backend is not None:
            told = usage if len(by_backend) == 1 else total_tokens(r.usage for r in mine if r.usage is not None)
            prompt, completion = told.input_tokens, told.output_tokens
            shares.append(Share(backend=backend, lines=len(mine), prompt_tokens=prompt, completion_tokens=completion))
    return shares


def causes_of(texts: Iterable[bytes]) -> list[Cause]:
    """Return why lines failed, by their texts; one that nobody can read (half a character pair) is in no group."""
    causes: list[Cause] = []
    for text in texts:
        try:
            causes.append(group_of(text))
        except ValueError:
            continue
    return causes


def by_cause(causes: Iterable[Cause]) -> list[Errors]:
    """Return failed lines by their groups, in the order in which each came first."""
    groups: defaultdict[ErrorGroup, list[Cause]] = defaultdict(list)
    for cause in causes:
        groups[cause.group].append(cause)
    return [
        Errors(
            group=group,
            count=len(found),
            custom_ids=tuple(cause.custom_id for cause in found[:IDS_KEPT]),
            example=found[0].example,
        )
        for group, found in groups.items()
    ]
