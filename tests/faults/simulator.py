"""Whole workers in virtual time, with faults drawn from a seed: one seed is one run, always the same.

    PYTHONPATH=tests python -m faults.simulator --seeds 0:20000      # prints the seeds that fail, and the end of one

Real are the loops, the rows (SQLite), the bytes (a folder in memory); the model server and the time are simulated.
Here it is schedules that are tested; the disk and the network have tests of their own.
"""

import argparse
import gc
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import structlog

from batchmill.spec import ids
from batchmill.store.blob import BlobGone
from faults.oracle import Violation
from faults.simulation import Simulation, World
from faults.virtual import StandStill, VirtualLoop

_PART = 25  # seeds that a process is handed at once


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a seed: what is wrong, if anything, and what happened."""

    seed: int
    violation: str | None
    digest: str
    counts: Counter[str]
    last: list[str] = field(default_factory=list)


def run_seed(world: World, seed: int) -> Outcome:
    """Run one seed and say what came of it."""
    loop = VirtualLoop()
    world.clock.attach(loop)
    world.empty(loop)
    simulation = Simulation(world=world, loop=loop, seed=seed)
    violation: str | None = None
    letters = random.Random(seed)  # noqa: S311 - drawn again from the same seed
    true_secrets, ids.secrets = (
        ids.secrets,
        SimpleNamespace(token_hex=lambda n: f"{letters.getrandbits(8 * n):0{2 * n}x}"),
    )  # type: ignore[assignment] # the same seed mints the same ids
    gc.disable()  # the dead wait for ever: collected in the middle of a run, they would run their `finally`
    try:
        loop.run_until_complete(simulation.run())
    except (Violation, StandStill) as found:
        violation = str(found)
    except BlobGone as found:
        violation = f"a client's File has lost the reference to {found}"
    finally:
        digest = simulation.trace.digest()
        loop.run_until_complete(simulation.tear_down())
        ids.secrets = true_secrets
        loop.close()
        gc.enable()
    counts = simulation.trace.counts
    counts.update({f"was {status}": count for status, count in simulation.oracle.states.items()})
    return Outcome(seed=seed, violation=violation, digest=digest, counts=counts, last=list(simulation.trace.last))


@contextmanager
def a_world() -> Iterator[World]:
    """Make a world in memory, in which the loops say nothing: thousands of seeds would say a lot."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
    folder = Path(tempfile.mkdtemp(prefix="batchmill-simulator-", dir=memory if memory.is_dir() else None))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        world = World(folder)
        yield world
        world.close()
    finally:
        structlog.reset_defaults()
        shutil.rmtree(folder)


def run_seeds(seeds: Sequence[int]) -> list[Outcome]:
    """Run these seeds in one process."""
    with a_world() as world:
        return [run_seed(world, seed) for seed in seeds]


def run_in_processes(seeds: Sequence[int], processes: int) -> list[Outcome]:
    """Run these seeds in so many processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = pool.map(run_seeds, [seeds[at : at + _PART] for at in range(0, len(seeds), _PART)])
        return [outcome for part in parts for outcome in part]


def main() -> int:
    """Run the seeds that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:1000", help="A:B, from A up to but not B")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    first, _, last = options.seeds.partition(":")
    began = time.monotonic()
    outcomes = run_in_processes(range(int(first), int(last)), options.processes)
    failed = [outcome for outcome in outcomes if outcome.violation is not None]
    for line in failed[0].last if failed else []:
        print(line)  # noqa: T201 - told to the one who runs it
    for outcome in failed:
        print(f"seed {outcome.seed}: {outcome.violation}")  # noqa: T201 - told to the one who runs it
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    told = ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
    print(f"{told}\n{len(outcomes)} seeds in {time.monotonic() - began:.0f} s, {len(failed)} failed")  # noqa: T201 - the same
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
