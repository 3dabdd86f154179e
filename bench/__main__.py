"""Runs every bench, one after another, and writes bench/results.json and docs/performance.md: `make bench`.

    python bench [validation clients …]

With names only those are run, and the results of the others stay. What fails or is absent is written down as such.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from figure import read
from page import Results, Run, page

_HERE = Path(__file__).parent
_RESULTS = _HERE / "results.json"
_PAGE = _HERE.parent / "docs" / "performance.md"
# name: its script and how it is run; the page has them in this order
_BENCHES = {
    "validation": "validation.py --bytes 100000000 --pairs 5",
    "dispatch": "dispatch.py --rounds 5",
    "durable": "durable.py --rounds 5",
    "clients": "clients.py --rounds 5",
    "transfer": "transfer.py",
    "memory": "memory.py",
    "closing": "closing.py --lines 1000000",
    "recovery": "recovery.py",
    "serving": "serving.py",
    "idle": "idle.py --open 1000 --stored 100000 --seconds 60",
    "makespan": "makespan.py --seeds 3",
    "scale": "scale.py --rounds 2 --only cost two million",
    "ends": "scale.py --only ends",
    "cache": "cache.py --passages 40 --questions 3",
}


def _run(name: str) -> Run:
    """Run one bench; its figures come through a file, and all else that it says goes to the terminal."""
    command, commit, began = f"python bench/{_BENCHES[name]}", _commit(), time.monotonic()
    print(f"\n{command}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.jsonl"
        script, *options = _BENCHES[name].split()
        run: list[str | Path] = [sys.executable, _HERE / script, *options, "--json", figures]
        failed = ""
        if not (_HERE / script).exists():
            failed = "there is no such script."
        elif code := subprocess.run(run, check=False).returncode:
            failed = f"ended with {code} before it had all of its figures."
        return Run(
            command=command,
            commit=commit,
            date=datetime.now(UTC).date().isoformat(),
            seconds=round(time.monotonic() - began),
            failed=failed,
            figures=read(figures) if figures.exists() else [],
        )


def _not_run(name: str) -> Run:
    return Run(
        command=f"python bench/{_BENCHES[name]}", commit="", date="", seconds=0, failed="has not been run.", figures=[]
    )


def _commit() -> str:
    """Return the tree's commit, with a plus sign if what is measured is not as it was committed."""
    git = ["git", "-C", str(_HERE.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True).stdout
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "bench/*.py", "bench/*.c"], check=False)
    return (commit.strip() or "no commit") + ("+" if changed.returncode else "")


def _machine() -> dict[str, str]:
    said = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    memory = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1]) / 2**20
    return {
        "processor": next((value.strip() for name, _, value in said if name.strip() == "model name"), "unknown"),
        "architecture": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def main() -> None:
    """Run the benches that are asked for, and write both files after each."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="bench", help=", ".join(_BENCHES))
    asked = options.parse_args().names or list(_BENCHES)
    if unknown := set(asked) - set(_BENCHES):
        options.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(_BENCHES)}")
    machine, runs = _machine(), dict[str, Run]()
    if _RESULTS.exists():
        held = Results.read(_RESULTS.read_text(encoding="utf-8"))
        if held.machine == machine:
            runs = held.runs
        elif len(asked) < len(_BENCHES):
            options.error(f"{_RESULTS.name} is of another machine or Python, so all benches are to be run")
    for name in asked:
        runs[name] = _run(name)
        results = Results(machine=machine, runs={each: runs.get(each) or _not_run(each) for each in _BENCHES})
        _RESULTS.write_text(results.text(), encoding="utf-8")
        _PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
