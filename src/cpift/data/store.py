"""Rows on disk: read one at a time, so that memory does not grow with a set.

They lie as JSON Lines, not as Arrow: rows of a set may be unlike one another, and Arrow gives all of them the same keys.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, overload

from cpift.data.row_checks import Row, check_row, json_line
from cpift.errors import CpiftError


class StoredRows(Sequence[Row]):
    """Some rows of a file of JSON Lines, in any order and as often as wanted; each access parses a row anew.

    Memory: 8 bytes for each row of the file, and 8 for each that is chosen.
    """

    def __init__(self, data: mmap.mmap | bytes, starts: array[int], chosen: Sequence[int]) -> None:
        self._data, self._starts, self._chosen = data, starts, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...

    def __getitem__(self, index: int | slice) -> Row | StoredRows:
        if isinstance(index, slice):
            return StoredRows(self._data, self._starts, self._chosen[index])
        row: Row = json.loads(self.line(index))
        return row

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def line(self, index: int) -> bytes:
        """The text of a row."""
        number = self._chosen[index]
        return self._data[self._starts[number] : self._starts[number + 1]]

    def take(self, wanted: Sequence[int]) -> StoredRows:
        """Rows of the file by their numbers in it."""
        return StoredRows(self._data, self._starts, wanted)


class RowWriter:
    """Takes rows one after the other, and gives them back as :class:`StoredRows`, from a file without a name.

    The file lies where temporary files do (``TMPDIR``), and goes with the rows. Used in a ``with`` statement.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="cpift-rows-")  # noqa: SIM115
        self._starts = array("q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # what is still to be written of rows that nobody wants
            self._file.close()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, row: Row, where: str) -> None:
        """Check a row, and store it.

        Args:
            row: a row.
            where: it stands, for messages.

        Raises:
            CpiftError: a row that cannot be trained on; no room on the disk.
        """
        line = json_line(row, where) + b"\n"
        check_row(row, where)
        try:
            self._file.write(line)
        except OSError as error:
            raise CpiftError(f"{where}: no room for the rows in {_folder()} ({error.strerror}); set TMPDIR") from error
        self._starts.append(self._starts[-1] + len(line))

    def rows(self) -> StoredRows:
        """All rows that were added."""
        try:
            self._file.flush()
        except OSError as error:
            raise CpiftError(f"no room for the rows in {_folder()} ({error.strerror}); set TMPDIR") from error
        return StoredRows(_mapped(self._file), self._starts, range(len(self)))


def read_jsonl(path: Path) -> StoredRows:
    """Rows of a file that :func:`write_jsonl` wrote.

    Args:
        path: the file, which must not change as long as the rows are used.

    Raises:
        CpiftError: a row that cannot be trained on, with file and line.
    """
    starts = array("q", [0])
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                try:
                    check_row(json.loads(line), where)
                except (ValueError, RecursionError) as error:
                    raise CpiftError(f"{where}: not JSON ({error})") from error
                starts.append(starts[-1] + len(line))
            return StoredRows(_mapped(file), starts, range(len(starts) - 1))
    except OSError as error:
        raise CpiftError(f"{path}: cannot be read ({error.strerror})") from error


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write one row a line.

    Args:
        path: the file.
        rows: rows that were checked.
    """
    with path.open("wb") as file:
        for line in lines_of(rows):
            file.write(line)


def lines_of(rows: Iterable[Row]) -> Iterator[bytes]:
    """Each row as a line of JSON."""
    if isinstance(rows, StoredRows):
        return (rows.line(index) for index in range(len(rows)))
    return (json_line(row, f"row {number}") + b"\n" for number, row in enumerate(rows, start=1))


def _mapped(file: IO[bytes]) -> mmap.mmap | bytes:
    if not file.seek(0, 2):  # an empty file cannot be mapped
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _folder() -> str:
    return tempfile.gettempdir()
