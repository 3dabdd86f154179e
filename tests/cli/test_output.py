"""Where a command writes: a file appears whole or not at all, and what is no file is never replaced."""

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from batchmill.cli.exit import Stop
from batchmill.cli.output import appearing


def write(path: Path, *, reads: tuple[Path, ...] = ()) -> None:
    """Write a line to it."""
    with appearing(path, reads=reads) as place, place.open("wb") as stream:
        stream.write(b"whole\n")


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    """After a fault an earlier one stays, and nothing else is left in the folder."""
    path = tmp_path / "out"
    path.write_text("earlier")
    with suppress(ValueError), appearing(path) as place:
        place.write_bytes(b"half")
        raise ValueError
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("out", "earlier")]
    write(path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("out", "whole\n")]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """A reader of the pipe gets the bytes, and the pipe is one still."""
    path, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join(10)
    assert (read, stat.S_ISFIFO(path.stat().st_mode)) == ([b"whole\n"], True)


def test_a_link_stays_one(tmp_path: Path) -> None:
    """The file that it leads to is the new one."""
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    write(link)
    write(link)
    assert (path.read_text(), link.is_symlink()) == ("whole\n", True)


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    """A folder, a name below a file, and what is read itself, by another name, too."""
    source, same = tmp_path / "source", tmp_path / "same"
    source.write_text("rows")
    same.hardlink_to(source)
    for path, said in (
        (tmp_path, "is a folder"),
        (source / "out", "cannot be written: Not a directory"),
        (same, "is what is read"),
    ):
        with pytest.raises(Stop, match=said) as stop:
            write(path, reads=(tmp_path / "none", source))
        assert (str(stop.value).startswith(f"{path} "), stop.value.code) == (True, 2)
    assert source.read_text() == "rows"
