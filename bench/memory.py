"""By how much memory grows with the input: two files through upload, validation, run and download on a real server.

    python bench/memory.py --small 20000000 --large 2000000000

Each file goes through a fresh `batchmill serve --limits open` whose backend is a compiled server. Memory is what no
file stands behind (RssAnon in /proc/PID/status), of all processes of the server together, that of the validation
included, looked at every 10 ms; what counts is the highest sum. The ratio is by how much that is higher for the large
file, to how many more bytes that has. Peaks are printed for each part of the way, and for each process.
"""

import contextlib
import json
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dispatch import stub
from figure import Figure, arguments, report
from served import ENDPOINT, Server, own_bytes, serving

GOAL = 0.02
_LOOK_SECONDS = 0.01
_MIB = 1 << 20
_TEXT = "What is the price of a train that leaves at eight and carries all of the town's apples? "


@dataclass(slots=True)
class Peaks:
    """The most memory, by part of the way: of all processes together, and of each."""

    together: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    each: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def look(self, server: Server, part: str) -> None:
        """Look once."""
        now: dict[str, int] = defaultdict(int)
        for pid, role in server.processes().items():
            now[role] += own_bytes(pid)
        self.together[part] = max(self.together[part], sum(now.values()))
        for role, size in now.items():
            self.each[part][role] = max(self.each[part][role], size)


@dataclass(slots=True)
class Watch:
    """Looks at a server all the time; `part` names what it is doing."""

    server: Server
    part: str = "start"
    peaks: Peaks = field(default_factory=Peaks)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look from now on."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_SECONDS):
                self.peaks.look(self.server, self.part)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def write_input(path: Path, size: int, *, line_bytes: int, model: str = "m") -> int:
    """Write an input of about so many bytes, of good lines that are all different; return the number of lines."""
    head = json.dumps({"model": model, "max_tokens": 256, "messages": [{"role": "user", "content": "@"}]})
    line = '{"custom_id": "request-%d", "method": "POST", "url": "' + ENDPOINT + '", "body": ' + head + "}\n"
    filler = (_TEXT * (line_bytes // len(_TEXT) + 1))[: max(0, line_bytes - len(line) - 16)]
    line = line.replace("@", "Question %d. " + filler)
    lines = written = 0
    with path.open("w", encoding="ascii", buffering=_MIB) as stream:
        while written < size:
            written += stream.write(line % (lines, lines))
            lines += 1
    return lines


def measure(size: int, line_bytes: int, folder: Path, url: str) -> tuple[int, Peaks]:
    """Send a file all the way; return its bytes and the peaks."""
    source = folder / "in.jsonl"
    lines = write_input(source, size, line_bytes=line_bytes)
    with serving(folder / "data", "--limits", "open", "--backend", f"{url}#m") as server:
        watch = Watch(server)
        took: dict[str, float] = {}
        with watch.looking():
            time.sleep(1)
            began = time.monotonic()

            def begin(part: str) -> None:
                nonlocal began
                now = time.monotonic()
                took[watch.part], began, watch.part = now - began, now, part

            begin("upload")
            file_id = server.upload(source)
            begin("validation")
            batch_id = server.create(file_id)
            server.until(batch_id, ("in_progress", "finalizing", "completed"))
            begin("run")
            server.until(batch_id, ("finalizing", "completed"))
            begin("finalizing")
            batch = server.until(batch_id, ("completed",))
            begin("download")
            if batch["request_counts"] != {"total": lines, "completed": lines, "failed": 0}:
                raise RuntimeError(f"not all lines were answered: {batch['request_counts']}")
            downloaded = server.download(batch["output_file_id"])
            begin("end")
    _show(source.stat().st_size, lines, downloaded, watch.peaks, took)
    return source.stat().st_size, watch.peaks


def _show(size: int, lines: int, downloaded: int, peaks: Peaks, took: Mapping[str, float]) -> None:
    print(f"{size / 1e6:.0f} MB in {lines} lines, {downloaded / 1e6:.0f} MB of results; MiB of memory at the most:")
    for part, together in peaks.together.items():
        each = ", ".join(f"{role} {most / _MIB:.1f}" for role, most in sorted(peaks.each[part].items()))
        print(f"  {part:10} {took.get(part, 0.0):7.1f} s  {together / _MIB:7.1f}  ({each})")


def figures(small: int, large: int, line_bytes: int, where: Path | None) -> Iterator[Figure]:
    """Measure both files."""
    found = []
    for size in (small, large):
        with tempfile.TemporaryDirectory(dir=where) as name, stub(Path(name)) as url:
            found.append(measure(size, line_bytes, Path(name), url.removesuffix("/chat/completions")))
    (low_bytes, low), (high_bytes, high) = found
    grown = max(high.together.values()) - max(low.together.values())
    worst = max(high.together, key=lambda part: high.together[part])
    yield Figure(
        group="memory",
        name="growth of memory / bytes of input",
        value=grown / (high_bytes - low_bytes),
        goal=GOAL,
        note=f"{grown / _MIB:.0f} MiB from {low_bytes / 1e6:.0f} MB to {high_bytes / 1e6:.0f} MB; most at {worst}",
    )


def main() -> None:
    """Send two files through servers of their own."""
    options = arguments(__doc__)
    options.add_argument("--small", type=int, default=20_000_000, help="bytes")
    options.add_argument("--large", type=int, default=2_000_000_000, help="bytes")
    options.add_argument("--line-bytes", type=int, default=1_000)
    options.add_argument("--folder", type=Path, help="on a disk with five times the large file; default: temporary")
    chosen = options.parse_args()
    report(figures(chosen.small, chosen.large, chosen.line_bytes, chosen.folder), chosen.json)


if __name__ == "__main__":
    main()
