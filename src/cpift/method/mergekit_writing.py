"""What ``fuse`` does, written as a merge in mergekit's YAML, where mergekit has a word for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from cpift.checkpoint.library import Untyped
from cpift.errors import CpiftError
from cpift.method.mergekit import WeightOfTasks


def write_merge(
    base: str,
    tuned: Mapping[str, str],
    *,
    backbone: str | None = None,
    regions: bool = False,
    interpolation: str = "slerp",
    space: str = "weights",
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
        CpiftError: mergekit has no word for it; says what.
    """
    start = backbone or base
    if regions:
        raise CpiftError("--write-mergekit: mergekit transplants no core regions; leave --region out")
    if interpolation == "sum" and start == base:
        each = _each(weight, list(tuned), 1.0)
        merge: dict[str, Untyped] = {"merge_method": "task_arithmetic", "base_model": base}
        merge["models"] = [_entry(path, each[name]) for name, path in tuned.items()]
    elif interpolation == "linear":
        shares = _linear_shares(weight, list(tuned), space == "updates" and start == base)
        merge = {"merge_method": "linear", "parameters": {"normalize": False}}
        models = {"": start, **tuned}
        merge["models"] = [_entry(models[name], share) for name, share in shares.items() if share]
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


def _each(weight: WeightOfTasks, tasks: Sequence[str], equal: float) -> dict[str, float]:
    if isinstance(weight, Mapping):
        return {task: float(weight[task]) for task in tasks}
    return dict.fromkeys(tasks, equal if weight == "equal" else float(weight))


def _linear_shares(weight: WeightOfTasks, tasks: Sequence[str], without_start: bool) -> dict[str, float]:
    """Share of the start, under "", and of each task: one after the other, or as given."""
    if isinstance(weight, Mapping):
        each = _each(weight, tasks, 0.0)
        return {"": 1.0 - sum(each.values()), **each}
    if weight == "equal":
        names = [*tasks] if without_start else ["", *tasks]
        return dict.fromkeys(names, 1 / len(names))
    shares = {"": 1.0}
    for task in tasks:
        shares = {name: share * (1 - float(weight)) for name, share in shares.items()} | {task: float(weight)}
    return shares
