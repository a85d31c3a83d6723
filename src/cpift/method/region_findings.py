"""What a user should know before trusting a core region."""

from __future__ import annotations

from cpift.files.findings import Finding, finding
from cpift.method.region import Region
from cpift.method.zero_updates import zero_warnings


def region_warnings(name: str, region: Region) -> list[Finding]:
    """What a user should know before trusting the region."""
    warnings = []
    if not region.count:
        warnings.append(finding("empty-region", f"{name}: the core region is empty; raise the percent"))
    warnings += zero_warnings(name, region.statistics)
    if region.count and not region.threshold:
        warnings.append(
            finding(
                "core-filled",
                f"{name}: fewer updates than the region holds are not zero; the rest was filled by position",
            )
        )
    return warnings
