"""What a user should know before trusting a core region."""

from __future__ import annotations

from cpift.files.findings import Finding, finding
from cpift.method.region import Region
from cpift.method.zero_updates import zero_warnings


def region_warnings(name: str, region: Region, bf16_weights: bool = False) -> list[Finding]:
    """What a user should know before trusting the region.

    Args:
        name: of the region.
        region: with its statistics.
        bf16_weights: was the update made by a training whose weights are bf16?
    """
    warnings = []
    if not region.count:
        warnings.append(finding("empty-region", f"{name}: the core region is empty; raise the percent"))
    if "zero_share" in region.statistics:  # other criteria score something else than the update
        warnings += [bf16_warning(name, region)] if bf16_weights else zero_warnings(name, region.statistics)
    if region.count and region.threshold == 0:
        warnings.append(
            finding(
                "core-filled",
                f"{name}: fewer {region.statistics.get('scores', 'update')}s than the region holds are not zero; the rest was filled by position",
            )
        )
    return warnings


def bf16_warning(name: str, region: Region) -> Finding:
    """The cost of bf16 weights in training: updates below half a step of bf16 are lost, the others are rounded to steps."""
    zeros = float(region.statistics.get("zero_share", 0.0))
    text = (
        f"{name}: trained with bf16 weights (model.dtype): {zeros:.0%} of the updates are exactly zero, the others whole "
        "steps of bf16; the region is not the one that fp32 weights give"
    )
    return finding("bf16-weights", text)
