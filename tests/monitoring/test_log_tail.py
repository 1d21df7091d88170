"""The log of a process, read while it grows: whole lines, each once, whatever happens to the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.log_tail import LONGEST, WINDOW, LogTail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "learner.log"


def write(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def new(tail: LogTail) -> list[bytes]:
    return list(tail.read())


def test_the_last_lines_come_first_and_then_what_is_new(log: Path) -> None:
    write(log, b"one\ntwo\nthree\n")
    tail = LogTail(log, 2)
    assert new(tail) == [b"two", b"three"]
    assert new(tail) == []
    write(log, b"four\n")
    assert new(tail) == [b"four"]


@pytest.mark.parametrize(
    ("lines", "seen"), [(0, []), (1, [b"two"]), (2, [b"one", b"two"]), (9, [b"one", b"two"]), (None, [b"one", b"two"])]
)
def test_so_many_and_no_more(log: Path, lines: int | None, seen: list[bytes]) -> None:
    write(log, b"one\ntwo\npart")
    tail = LogTail(log, lines)
    assert new(tail) == seen
    write(log, b"ly\n")
    assert new(tail) == [b"partly"]


def test_a_line_counts_once_its_newline_is_there(log: Path) -> None:
    tail = LogTail(log)
    assert new(tail) == [], "there is no file yet"
    write(log, b"hel")
    assert new(tail) == []
    write(log, b"lo\nwor")
    assert new(tail) == [b"hello"]
    assert list(tail.rest()) == [b"wor"], "nobody will write on"


def test_a_file_that_was_cut_off_is_read_from_its_beginning(log: Path) -> None:
    write(log, b"of yesterday\nhalf a li")
    tail = LogTail(log)
    assert new(tail) == [b"of yesterday"]
    log.write_bytes(b"of today\n")
    assert new(tail) == [b"of today"]


def test_a_file_that_was_put_aside_is_read_to_its_end_before_the_one_in_its_place(log: Path) -> None:
    write(log, b"one\n")
    tail = LogTail(log)
    assert new(tail) == [b"one"]
    log.rename(log.with_suffix(".1"))
    write(log.with_suffix(".1"), b"two\nthree")
    assert new(tail) == [b"two"], "the process still writes there"
    write(log, b"four\n")
    assert new(tail) == [b"three", b"four"]


def test_a_line_without_end_costs_no_memory(log: Path) -> None:
    write(log, b"x" * (3 * WINDOW))
    tail = LogTail(log)
    assert new(tail) == []
    write(log, b"\nshort\n")
    long, short = new(tail)
    assert long == b"x" * LONGEST + b" [...]"
    assert short == b"short", "and the next one is whole"


def test_the_last_lines_of_a_huge_file_are_found_without_reading_it(log: Path) -> None:
    write(log, b"a" * (2 * WINDOW) + b"\nlast\n")
    assert new(LogTail(log, 5)) == [b"last"], "of the other the beginning is too far back"
