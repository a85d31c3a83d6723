"""What ``fuse`` does, written as a merge in mergekit's YAML, where mergekit has a word for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from cpift.checkpoint.library import Untyped
from cpift.errors import CpiftError
from cpift.method.fusion.options import WeightOfTasks, in_order
from cpift.method.interpolations import INTERPOLATIONS, Space
from cpift.method.interpolations.vectors import Vectors


def write_merge(
    base: str,
    tuned: Mapping[str, str],
    *,
    backbone: str | None = None,
    regions: bool = False,
    interpolation: str = "slerp",
    space: Space = "weights",
    vector: str = "tensor",
    weight: WeightOfTasks = "equal",
    dtype: str | None = None,
) -> str:
    """What ``fuse`` does with these arguments, as mergekit's YAML.

    Args:
        base: θ⁰, a folder or a hub id.
        tuned: θᵢ by task; plain models.
        backbone: as in ``fuse``.
        regions: are core regions transplanted?
        interpolation: as in ``fuse``.
        space: as in ``fuse``.
        vector: as in ``fuse``.
        weight: as in ``fuse``.
        dtype: as in ``fuse``.

    Raises:
        CpiftError: mergekit has no word for it; says what. A weight that lacks a task.
    """
    start = backbone or base
    if regions:
        raise CpiftError("--write-mergekit: mergekit transplants no core regions; leave --region out")
    if interpolation == "sum" and start == base:
        shares = _shares(interpolation, space, weight, list(tuned), without_start=True)
        merge: dict[str, Untyped] = {"merge_method": "task_arithmetic", "base_model": base}
        merge["models"] = [_entry(path, share) for path, share in zip(tuned.values(), shares[1:], strict=True)]
    elif interpolation == "linear":
        shares = _shares(interpolation, space, weight, list(tuned), without_start=start == base)
        merge = {"merge_method": "linear", "parameters": {"normalize": False}}
        models = zip([start, *tuned.values()], shares, strict=True)
        merge["models"] = [_entry(model, share) for model, share in models if share]
    elif interpolation == "slerp" and len(tuned) == 1 and (space, vector) == ("weights", "tensor"):
        share = 0.5 if weight == "equal" else weight
        merge = {
            "merge_method": "slerp",
            "base_model": start,
            "models": [{"model": m} for m in (start, *tuned.values())],
        }
        merge["parameters"] = {"t": share}
    else:
        raise CpiftError(
            "--write-mergekit: one file of mergekit says linear, sum without a backbone, and slerp of one tuned "
            "checkpoint over its tensors; this is none of them"
        )
    return yaml.safe_dump({**merge, **({"dtype": dtype} if dtype else {})}, sort_keys=False, allow_unicode=True)


def _entry(model: str, weight: float) -> dict[str, Untyped]:
    return {"model": model, "parameters": {"weight": weight}}


def _shares(
    interpolation: str, space: Space, weight: WeightOfTasks, tasks: Sequence[str], *, without_start: bool
) -> list[float]:
    """Share of the start and of each task, by the interpolation itself; of these two it does not depend on the vectors.

    Args:
        interpolation: linear or sum.
        space: as in ``fuse``.
        weight: as in ``fuse``.
        tasks: in order.
        without_start: is the start the base, whose update is zero?
    """
    gram = np.eye(len(tasks) + 2)
    gram[1, 1] = 0.0 if without_start else 1.0
    found = INTERPOLATIONS[interpolation].shares(Vectors(gram, 1, space), in_order(weight, tasks))
    return [float(share) for share in found.values]
