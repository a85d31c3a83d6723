"""The region of a model that is worth protecting, by one of several criteria; for use with ``freeze`` in any trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpift.checkpoint.align import align
from cpift.checkpoint.compatibility import check_compatible
from cpift.checkpoint.reader import open_checkpoint
from cpift.checkpoint.stream import Checkpoint, fingerprint
from cpift.data.row_checks import Row, check_row
from cpift.data.sources import SourceFacts, source_rows
from cpift.data.templates import ChatSettings
from cpift.errors import CpiftError, nearest
from cpift.kernels.threads import check_threads
from cpift.method.criteria.choice import UNITS
from cpift.method.identify import core_count
from cpift.method.region import Region
from cpift.method.scores import counted, magnitudes, updates
from cpift.method.zero_updates import reasons, zero_warnings
from cpift.recipe.task import Source
from cpift.train.importance import Importance, squared_gradients, weighted_gradients, write_importance

Unit = Literal["element", "column"]
MAX_LENGTH = 1024  # tokens of a row, as TRL has it


@dataclass(frozen=True)
class Criterion:
    """A score of parameters.

    Attributes:
        about: what it is.
        needs: what it needs beside the model: "base", "rows" or "".
        score: gives it from rows; None where it needs none.
    """

    about: str
    needs: str = ""
    score: Importance | None = None


CRITERIA: Mapping[str, Criterion] = {
    "update": Criterion("|model − base|", "base"),
    "fisher": Criterion("mean over rows of the squared gradient of the row's summed loss", "rows", squared_gradients),
    "magnitude_gradient": Criterion(
        "|θ·g|, g the gradient of the mean loss over the rows' trained tokens", "rows", weighted_gradients
    ),
    "magnitude": Criterion("|θ|"),
}


@dataclass(frozen=True)
class Protected:
    """The region, and what a user should know of it."""

    region: Region
    warnings: list[str]


def protect(
    model: str | Path,
    *,
    base: str | Path | None = None,
    rows: str | Sequence[Row] | None = None,
    by: str | None = None,
    percent: str | float | int = 1,
    unit: str = "element",
    only: Iterable[str] = (),
    exclude: Iterable[str] = (),
    max_length: int = MAX_LENGTH,
    threads: int | None = None,
    tick: Callable[[int, int], None] = lambda done, rows: None,
    chat: ChatSettings | None = None,
    trust_remote_code: bool = False,
) -> Protected:
    """Choose the top ``percent`` % of a model's parameters by a criterion.

    Memory does not grow with the model but by the positions chosen, 4 bytes each; criteria by rows hold the model, its
    gradients and the scores.

    Args:
        model: the checkpoint to be protected.
        base: what it was fine-tuned from, for "update".
        rows: rows that it should still be good at, for criteria by rows: a file, folder or data set id, or checked rows.
        by: one of :data:`CRITERIA`; by default "update" with a base, "fisher" with rows.
        percent: share of the counted elements, 0 < percent <= 100.
        unit: "element", or "column" (see :func:`cpift.method.top_scores.top_columns`).
        only: shell-style patterns; with any, only parameters that match one count.
        exclude: shell-style patterns; parameters that match one do not count.
        max_length: tokens after which a row is cut.
        threads: worker threads, by default one a core; changes speed only.
        tick: called with the number of rows done, and of all.
        chat: chat template and end token in place of the tokenizer's own.
        trust_remote_code: may code that lies in the model's folder be run?

    Raises:
        CpiftError: a base or rows missing or too many, checkpoints that do not match, a value out of range.
    """
    check_threads(threads)
    name = _criterion(base, rows, by)
    if unit not in UNITS:
        raise CpiftError(f"unit: {unit} is not one of {', '.join(UNITS)}")
    if max_length < 1:
        raise CpiftError(f"max_length: {max_length} is no number of tokens")
    origin = None if base is None else open_checkpoint(base)
    checkpoint, warnings = open_checkpoint(model, origin), list[str]()
    if origin is not None:  # names are the base's, as identify has them
        warnings += check_compatible(origin, {"the model": checkpoint})
        checkpoint = align(origin, checkpoint)
    shapes = _counted(checkpoint, list(only), list(exclude))
    total = sum(checkpoint.tensors[parameter].size for parameter in shapes)
    count = core_count(percent, total)
    statistics: dict[str, object] = {"by": name, "unit": unit}
    with tempfile.TemporaryDirectory(prefix="cpift-") as scratch:
        read = magnitudes(checkpoint) if origin is None else updates(origin, checkpoint)
        score = CRITERIA[name].score
        if rows is not None and score is not None:
            folder, kept = Path(scratch), _rows(rows, warnings) if isinstance(rows, str) else rows
            measured = write_importance(
                Path(model), kept, score, folder, max_length, tick, chat=chat, trust_remote_code=trust_remote_code
            )
            warnings += measured.warnings
            if measured.left_out:
                warnings.append(
                    f"{measured.left_out} rows have no trained token within {max_length} tokens and were left out"
                )
            statistics |= {"rows": measured.rows, "tokens": measured.tokens}
            read = magnitudes(align(checkpoint, open_checkpoint(folder)))
        selected = UNITS[unit](shapes, read, count, threads)
    zeros = sum(selected.zeros.values())
    statistics["zero_share"] = zeros / total if total else 0.0
    if origin is not None:
        statistics |= reasons(origin, checkpoint, selected.zeros, total)
        warnings += [warning.text for warning in zero_warnings("the region", statistics)]
    carried = total - zeros
    if unit == "element" and carried < selected.count:
        warnings.append(
            f"only {carried} of the {selected.count} positions have a score above zero; the other "
            f"{selected.count - carried} were filled in index order and carry no information"
        )
    if not selected.count:
        warnings.append("the region is empty; raise the percent")
    region = Region(
        selected.positions,
        total,
        selected.negative if origin is not None and unit == "element" else None,
        {parameter: shapes[parameter] for parameter in selected.positions},
        percent=str(percent),
        threshold=selected.threshold,
        base="" if origin is None else fingerprint(origin),
        tuned=fingerprint(checkpoint),
        statistics=statistics,
    )
    return Protected(region, warnings)


def _criterion(base: object, rows: object, by: str | None) -> str:
    """The name of the criterion, once what it needs is there and nothing else."""
    given = [what for what, value in (("base", base), ("rows", rows)) if value is not None]
    if by is None:
        if len(given) != 1:
            raise CpiftError(
                "protect: give a base (what did the model change?) or rows (what is it good at?), one of them"
            )
        return {"base": "update", "rows": "fisher"}[given[0]]
    if by not in CRITERIA:
        near = nearest(by, CRITERIA)
        raise CpiftError(f"by: {by} is not one of {', '.join(CRITERIA)}" + (f"; did you mean {near}?" if near else ""))
    needs = CRITERIA[by].needs
    if needs and needs not in given:
        raise CpiftError(f"by: {by} needs {'a base' if needs == 'base' else 'rows'}; give --{needs}")
    surplus = [what for what in given if what != needs]
    if surplus:
        raise CpiftError(f"by: {by} does not use --{surplus[0]}; leave it out")
    return by


def _counted(checkpoint: Checkpoint, only: list[str], exclude: list[str]) -> dict[str, tuple[int, ...]]:
    kept = counted(checkpoint.tensors, only, exclude)
    if not kept:
        raise CpiftError("protect: --except leaves no parameter")
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items() if name in kept}


def _rows(path: str, warnings: list[str]) -> list[Row]:
    facts = SourceFacts(path)
    rows = [check_row(row, where) for where, row in source_rows(Source(path=path), facts)]
    if facts.empty:
        warnings.append(f"{facts.empty} rows of {path} have an empty response and were left out")
    return rows
