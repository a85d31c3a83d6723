"""Encoded rows in Arrow on disk: each set is encoded once, whatever uses it, and memory does not grow with it.

A file is keyed by content: the rows, the tokenizer and its chat template, the length at which rows are cut, and the code
that encodes. Files of large sets lie in the cache of ``datasets`` (``HF_DATASETS_CACHE``), where later runs find them;
those of small sets in a temporary folder of the process.
"""

from __future__ import annotations

import atexit
import datetime
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

from cpift.data.encoding import Encoded, encode
from cpift.data.row_checks import Row
from cpift.data.store import lines_of
from cpift.data.templates import template_kwargs
from cpift.errors import CpiftError
from cpift.typing import Tokenizer

LARGE = 10_000  # rows from which a set is kept for later runs
_BATCH = 1000  # rows in memory at a time
_CODE = ("encoding.py", "marks.py", "templates.py", "turns.py", "row_keys.py")
_LIBRARIES = ("transformers", "tokenizers", "trl", "jinja2")
_NUMBERS = datasets.Sequence(datasets.Value("int32"))
_FEATURES = datasets.Features(
    {
        "input_ids": _NUMBERS,
        "labels": _NUMBERS,
        "notes": datasets.Sequence(datasets.Value("string")),
        "whole": datasets.Value("int32"),  # tokens before the cut
        "trained": datasets.Value("int32"),
    }
)


class EncodedRows(Sequence[Encoded]):
    """Encoded rows, read from disk as they are used. Some of a file's, in any order and as often as wanted."""

    def __init__(self, table: datasets.Dataset) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> EncodedRows: ...

    def __getitem__(self, index: int | slice) -> Encoded | EncodedRows:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        row = self.table[index]
        return Encoded(row["input_ids"], row["labels"], tuple(row["notes"]))

    def __iter__(self) -> Iterator[Encoded]:
        for batch in self.table.iter(_BATCH):
            for ids, labels, notes in zip(batch["input_ids"], batch["labels"], batch["notes"], strict=True):
                yield Encoded(ids, labels, tuple(notes))

    def take(self, wanted: Sequence[int]) -> EncodedRows:
        """Rows by their numbers."""
        return EncodedRows(self.table.select(wanted))

    def column(self, name: str) -> np.ndarray:
        """A number of each row, int64: ``whole``, its tokens before the cut, or ``trained``, those with a loss."""
        return np.asarray(self.table.with_format("numpy", columns=[name])[:][name], np.int64)


def joined(parts: Sequence[EncodedRows]) -> EncodedRows:
    """Rows of several sets, one after the other."""
    return EncodedRows(datasets.concatenate_datasets([part.table for part in parts]))


def training_set(rows: Sequence[Encoded]) -> datasets.Dataset:
    """The rows as the trainer takes them: ``input_ids`` and ``labels``."""
    if isinstance(rows, EncodedRows):
        return rows.table.select_columns(["input_ids", "labels"])
    return datasets.Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])


def encode_rows(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int | None) -> EncodedRows:
    """All rows, encoded now or by an earlier call for the same rows, tokenizer and length.

    Args:
        rows: rows of a task.
        tokenizer: the model's.
        max_length: tokens after which a row is cut; None: never.

    Raises:
        CpiftError: a row that the chat template refuses; no room on the disk.
    """
    folder = _lasting() if len(rows) >= LARGE else None
    place = (folder or _temporary()) / f"{_key(rows, tokenizer, max_length)}.arrow"
    if not place.is_file():
        try:
            _write(rows, tokenizer, max_length, place)
        except OSError as error:
            raise CpiftError(
                f"{place.parent}: encoded rows cannot be written ({error.strerror}); make room, or set "
                f"{'HF_DATASETS_CACHE' if folder else 'TMPDIR'}"
            ) from error
    return EncodedRows(datasets.Dataset.from_file(str(place)))


def _write(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int | None, place: Path) -> None:
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        with ArrowWriter(path=str(partial), features=_FEATURES, writer_batch_size=_BATCH) as writer:
            for row in rows:
                encoded = encode(row, tokenizer)
                used = Encoded(encoded.input_ids[:max_length], encoded.labels[:max_length], encoded.notes)
                writer.write(
                    {
                        "input_ids": used.input_ids,
                        "labels": used.labels,
                        "notes": list(used.notes),
                        "whole": len(encoded.input_ids),
                        "trained": used.trained,
                    }
                )
            writer.finalize()
        partial.replace(place)  # whole or not there, also where several processes write it
    finally:
        partial.unlink(missing_ok=True)


def _key(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int | None) -> str:
    digest = hashlib.sha256(json.dumps([max_length, _code(), _identity(tokenizer)]).encode())
    for line in lines_of(rows):
        digest.update(line)
    return digest.hexdigest()[:32]


def _identity(tokenizer: Tokenizer) -> list[Any]:
    """All of a tokenizer that decides about tokens and marks."""
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    today = datetime.date.today().isoformat() if "strftime_now" in template else ""
    core = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return [core, template, special, json.dumps(template_kwargs(tokenizer), sort_keys=True, default=str), today]


@lru_cache(maxsize=1)
def _code() -> list[str]:
    own = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE)).hexdigest()
    return [own, *(importlib.metadata.version(name) for name in _LIBRARIES)]


def _lasting() -> Path | None:
    """The folder of large sets; None where it cannot be written."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "cpift"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@lru_cache(maxsize=1)
def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="cpift-encoded-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
