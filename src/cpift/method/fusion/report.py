"""What ``fusion.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from cpift.method.fusion.inputs import Inputs
from cpift.method.fusion.options import FusionOptions


class TensorReport(TypedDict):
    """One tensor.

    Attributes:
        coefficients: of θ⁰, the backbone and each task, outside the core regions.
        angles: those met by the interpolation, radians.
        norms: of θ⁰ and of the updates of backbone and tasks, over the free entries.
        update_angles: of the updates of backbone and tasks, pair by pair, radians; None where one is zero.
        free: number of entries in no core region.
        core: number of entries in a core region.
        won: number of core positions that each task's value stands at.
        contested: number of positions in more than one region.
    """

    coefficients: list[float]
    angles: list[float]
    norms: list[float]
    update_angles: list[list[float | None]]
    free: int
    core: int
    won: dict[str, int]
    contested: int


class FusionReport(TypedDict):
    """The whole of it. ``models`` names the coefficients, ``reads`` says how often each checkpoint was read."""

    format: str
    options: Mapping[str, object]
    models: list[str]
    fingerprints: list[str]
    reads: int
    total: int
    core: int
    core_share: float
    contested: int
    won: dict[str, int]
    copied: dict[str, str]
    tied: dict[str, str]
    vocabulary: NotRequired[dict[str, Any]]
    companions: dict[str, str]
    warnings: list[str]
    tensors: dict[str, TensorReport]


def fusion_report(
    inputs: Inputs, options: FusionOptions, tensors: dict[str, TensorReport], fingerprints: list[str]
) -> FusionReport:
    """Add up what is known of the tensors.

    Args:
        inputs: what was fused.
        options: how.
        tensors: by name.
        fingerprints: of :attr:`Inputs.models`.
    """
    tasks = list(inputs.tasks)
    core = sum(t["core"] for t in tensors.values())
    report: FusionReport = {
        "format": "cpift.fusion/1",
        "options": options.to_dict(),
        "models": ["base", "backbone", *tasks],
        "fingerprints": fingerprints,
        "reads": options.reads,
        "total": inputs.base.total,
        "core": core,
        "core_share": core / inputs.base.total,
        "contested": sum(t["contested"] for t in tensors.values()),
        "won": {task: sum(t["won"][task] for t in tensors.values()) for task in tasks},
        "copied": dict(inputs.copies.buffers),
        "tied": dict(inputs.copies.aliases),
        "companions": inputs.companions.notes,
        "warnings": inputs.warnings,
        "tensors": tensors,
    }
    if inputs.rows.counts:
        report["vocabulary"] = inputs.rows.report()
    return report
