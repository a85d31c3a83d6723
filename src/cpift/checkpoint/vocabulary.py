"""Checkpoints whose vocabulary is larger than the base's: the union of their rows.

Rows that all have are fused. A row that the base has no token for is copied from the model that added one there; where
several added the same token, it is the mean of their rows. Models that added different tokens are refused.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cpift.checkpoint.files import read_json
from cpift.checkpoint.stream import BLOCK, Block, Checkpoint, native
from cpift.checkpoint.tokens import Tokens, new_tokens
from cpift.errors import CpiftError
from cpift.kernels.lazy import compiled

_as_float64 = compiled("as_float64")

Vocabulary = Literal["same", "union"]

# Tensors with one row a token, by the end of their names.
_ROWS = (
    "*embed_tokens.weight",
    "*wte.weight",
    "*word_embeddings.weight",
    "*embed_in.weight",
    "*tok_embeddings.weight",
    "*lm_head.weight",
    "*lm_head.bias",
    "*embed_out.weight",
    "output.weight",
    "*.output.weight",
)


def has_rows_of_tokens(name: str) -> bool:
    """Is this an input or output embedding?"""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _ROWS)


def base_rows(model: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The model with the base's rows alone in its embeddings."""
    tensors = {
        name: t if t.shape == base.tensors[name].shape else t.first_rows(base.tensors[name].shape)
        for name, t in model.tensors.items()
    }
    return replace(model, tensors=tensors)


@dataclass(frozen=True)
class Run:
    """Rows ``start`` to ``stop`` are taken from these models (names), and not fused."""

    start: int
    stop: int
    models: tuple[str, ...]


@dataclass
class Rows:
    """Which rows of which tensors are not fused, and where they come from."""

    models: dict[str, Checkpoint] = field(default_factory=dict)  # with all of their rows
    counts: dict[str, int] = field(default_factory=dict)  # tensor to its rows in the output
    runs: list[Run] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the output."""
        return (self.counts[name], *shape[1:]) if name in self.counts else shape

    def beyond(self, base: Checkpoint, names: list[str]) -> Iterator[Block]:
        """Blocks of the rows that the base does not have."""
        for name in sorted(set(names) & self.counts.keys()):
            shape = base.tensors[name].shape
            end = self.counts[name] * (base.tensors[name].size // shape[0])
            for start in range(base.tensors[name].size, end, BLOCK):
                yield Block(name, start, min(start + BLOCK, end))

    def parts(self, block: Block, base: Checkpoint) -> Iterator[tuple[int, np.ndarray]]:
        """Copied values that lie in the block: place within the block, and float64 values."""
        if block.name not in self.counts:
            return
        width = base.tensors[block.name].size // base.tensors[block.name].shape[0]
        for run in self.runs:
            start, stop = max(run.start * width, block.start), min(run.stop * width, block.stop)
            if start >= stop:
                continue
            total = np.zeros(stop - start)
            values = np.empty(stop - start)
            for name in run.models:
                _as_float64(native(self.models[name].raw(block.name, start, stop)), values)
                total = values.copy() if len(run.models) == 1 else total + values
            yield start - block.start, total / len(run.models)

    def report(self) -> dict[str, object]:
        """For ``fusion.json``."""
        runs = [{"rows": [run.start, run.stop], "from": list(run.models)} for run in self.runs]
        return {"rows": max(self.counts.values(), default=0), "copied": runs, "tokens": self.tokens}


def union(base: Checkpoint, models: Mapping[str, Checkpoint]) -> Rows:
    """Which rows the models have that the base does not.

    Args:
        base: what they were trained from.
        models: aligned with the base, with all of their rows.

    Raises:
        CpiftError: a model has fewer rows than the base.
    """
    names = [name for name in base.tensors if has_rows_of_tokens(name)]
    if not names:
        raise CpiftError(f"{base.path}: --vocabulary union: no embedding is known in this architecture")
    have = base.tensors[names[0]].shape[0]
    names = [name for name in names if base.tensors[name].shape[0] == have]
    rows: dict[str, int] = {}
    for name, model in models.items():
        counts = {model.tensors[n].shape[0] for n in names}
        if len(counts) > 1 or min(counts) < have:
            raise CpiftError(
                f"{model.path}: --vocabulary union: its embeddings have {sorted(counts)} rows, the base's {have}; "
                f"resize it to at least these first (transformers: model.resize_token_embeddings({have}))"
            )
        rows[name] = counts.pop()
    origin = Tokens.read(base.path)
    held = {name: own for name, model in models.items() if (own := Tokens.read(model.path)) is not None}
    added = {name: new_tokens(origin, tokens) if origin else {} for name, tokens in held.items()}
    owners: dict[int, tuple[str, ...]] = {}
    for name, tokens in added.items():
        for row in tokens.values():
            if row < rows[name]:
                owners[row] = (*owners.get(row, ()), name)
    for row in range(have, max(rows.values(), default=have)):
        owners.setdefault(row, tuple(name for name in models if rows[name] > row))
    runs: list[Run] = []
    for row in sorted(owners):
        if runs and runs[-1].stop == row and runs[-1].models == owners[row]:
            runs[-1] = replace(runs[-1], stop=row + 1)
        else:
            runs.append(Run(row, row + 1, owners[row]))
    most = max(rows.values(), default=have)
    known = {token: row for tokens in added.values() for token, row in tokens.items()}
    return Rows(dict(models), dict.fromkeys(names, most), runs, known)


def write_tokenizer(target: Path, folders: list[Path]) -> None:
    """Add to the tokenizer in ``target`` the tokens that the models of ``folders`` added to theirs.

    Raises:
        CpiftError: tokens that stand in a vocabulary itself, not among the added ones, cannot be joined.
    """
    ours = Tokens.read(target)
    if ours is None or not (target / "tokenizer.json").is_file():
        return
    entries: dict[int, Any] = {}
    for folder in folders:
        theirs = Tokens.read(folder)
        missing = set(new_tokens(ours, theirs)) if theirs else set()
        if not missing:
            continue
        added = {e["content"]: e for e in read_json(folder / "tokenizer.json").get("added_tokens") or []}
        inside = sorted(missing - added.keys())
        if inside:
            raise CpiftError(
                f"{folder}: {inside[0]!r} and {len(inside) - 1} more tokens are part of the vocabulary itself, and no one "
                "model has all tokens; train the models with one tokenizer"
            )
        entries |= {added[token]["id"]: added[token] for token in missing}
    if not entries:
        return
    table = read_json(target / "tokenizer.json")
    kept = [entry for entry in table.get("added_tokens") or [] if entry["id"] not in entries]
    table["added_tokens"] = sorted([*kept, *entries.values()], key=lambda entry: entry["id"])
    (target / "tokenizer.json").write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        table = read_json(settings)
        if "added_tokens_decoder" in table:
            extra = {str(i): {k: v for k, v in e.items() if k != "id"} for i, e in sorted(entries.items())}
            table["added_tokens_decoder"] |= extra
            settings.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
