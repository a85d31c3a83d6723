"""Files of rows: one table of kinds, each with its reader; compressed ones too."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cpift.checkpoint.library import library
from cpift.data.loading import loaded
from cpift.errors import CpiftError

Located = tuple[str, Any]  # where a row stands, for messages; and the row as it was given


@dataclass(frozen=True)
class FileKind:
    """A kind of file."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Iterator[Located]]
    note: str


COMPRESSED = (".gz", ".zst")


def kind_of(path: str | Path) -> FileKind | None:
    """The kind of a file, by its name alone, in capitals or not; None where no kind has such a name."""
    name = Path(path).name.lower()
    stem = next((name.removesuffix(suffix) for suffix in COMPRESSED if name.endswith(suffix)), name)
    return next((kind for kind in KINDS if stem.endswith(kind.suffixes)), None)


def read_file(path: Path, kind: FileKind) -> Iterator[Located]:
    """The rows of a file, each with where it stands.

    Args:
        path: the file.
        kind: its kind.

    Raises:
        CpiftError: the file is missing, no file, damaged, or not UTF-8; with file and line where one is known.
    """
    if not os.path.lexists(path):
        raise CpiftError(missing(path))
    if not os.path.isfile(path):  # a pipe or a device would keep us waiting
        raise CpiftError(f"{path} is no file")
    try:
        yield from kind.read(path)
    except UnicodeDecodeError as error:
        raise CpiftError(f"{path}: not UTF-8 text ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CpiftError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def missing(path: Path) -> str:
    """What to report of a file that is not there; the file beside it that differs in its ending alone is named."""
    twin = twin_of(path)
    return f"{path} is missing; " + (f"did you mean {twin}?" if twin else "paths count from the recipe's folder")


def twin_of(path: Path) -> str:
    """The file of rows beside a path that differs from it in its ending alone; empty where there is none."""
    if not path.suffix:  # perhaps a data set of the hub
        return ""
    beside = sorted(path.parent.glob(f"{glob.escape(path.name.partition('.')[0])}.*"))
    return next((file.name for file in beside if is_file_name(file.name)), "")


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Text of a file, decompressed, without a byte order mark."""
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline="") as text:
        yield text


def _open_bytes(path: Path) -> Any:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        return library("pyarrow").input_stream(str(path), compression="zstd")
    return path.open("rb")


def _json_lines(path: Path) -> Iterator[Located]:
    with _open_text(path) as file:
        yield from _lines(path, file)


def _lines(path: Path, file: TextIO) -> Iterator[Located]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CpiftError(f"{path}, line {number}: not JSON ({error})") from error
        yield f"{path}, line {number}", row


def _json(path: Path) -> Iterator[Located]:
    with _open_text(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield from _lines(path, io.StringIO(text, newline=""))
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise CpiftError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise CpiftError(f"{path}: not JSON ({error})") from error
    for i, row in enumerate(rows):
        yield f"{path}, row {i}", without_empty(row)


def without_empty(row: object) -> Any:
    """A row of a table without the columns that are null in it."""
    return {key: value for key, value in row.items() if value is not None} if isinstance(row, dict) else row


def from_arrow(row: Mapping[str, object]) -> dict[str, object]:
    """A row of an Arrow table, without what is null.

    Arrow gives all objects of a column the same keys. In tools and in the arguments of their calls those that a row
    did not have would be rendered as null.
    """
    made = {key: value for key, value in row.items() if value is not None}
    for key, value in made.items():
        if key in ("tools", "chat_template_kwargs"):
            made[key] = _without_null(value)
        elif isinstance(value, list):
            made[key] = [_calls_without_null(turn) for turn in value]
    return made


def _calls_without_null(turn: object) -> Any:
    if not isinstance(turn, dict) or not turn.get("tool_calls"):
        return turn
    return {**turn, "tool_calls": _without_null(turn["tool_calls"])}


def _without_null(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value


def _comma(path: Path) -> Iterator[Located]:
    """A header without a comma, but with semicolons or tabs, is divided by these."""
    with _open_text(path) as file:
        header = file.readline()
    delimiter = next((sign for sign in ",;\t" if sign in header), ",")
    yield from _table(path, delimiter)


def _tab(path: Path) -> Iterator[Located]:
    yield from _table(path, "\t")


def _table(path: Path, delimiter: str) -> Iterator[Located]:
    """Every cell as text. A JSON list of turns or tools in a cell is that list."""
    csv.field_size_limit(sys.maxsize)
    with _open_text(path) as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise CpiftError(f"{path}: a column stands twice in the header")
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise CpiftError(
                        f"{path}, line {lines.line_num}: has {len(cells)} cells, and the header has {len(header)}"
                    )
                if delimiter == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
                    raise CpiftError(
                        f"{path}, line {lines.line_num}: a cell in quotation marks goes over several lines and tabs: the "
                        "marks belong to the text; double them, and put the cell in marks, or give the rows as JSON Lines"
                    )
                pairs = zip(header, cells, strict=True)
                yield f"{path}, line {lines.line_num}", {key: _cell(key, cell) for key, cell in pairs}
        except csv.Error as error:
            raise CpiftError(f"{path}, line {lines.line_num}: not a table ({error})") from error


def _cell(key: str, cell: str) -> Any:
    if key in ("messages", "conversations", "conversation", "tools") and cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _parquet(path: Path) -> Iterator[Located]:
    data = loaded(str(path), lambda: library("datasets").load_dataset("parquet", data_files=str(path), split="train"))
    for i, row in enumerate(data):
        yield f"{path}, row {i}", from_arrow(row)


JSON_LINES = FileKind("JSON Lines", (".jsonl", ".ndjson", ".jsonlines"), _json_lines, "one row a line")
KINDS = (
    JSON_LINES,
    FileKind("JSON", (".json",), _json, "a list of rows, or one row a line"),
    FileKind("CSV", (".csv",), _comma, "with a header; by comma, or semicolon or tab; every cell is text"),
    FileKind("TSV", (".tsv",), _tab, "as CSV, by tab"),
    FileKind("Parquet", (".parquet",), _parquet, "read by datasets"),
)
SUFFIXES = tuple(suffix for kind in KINDS for suffix in kind.suffixes)


def is_file_name(value: str) -> bool:
    """Has a value the name of a file of rows, so that it is no hub id?"""
    return kind_of(value) is not None
