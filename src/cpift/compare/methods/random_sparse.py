"""Random sparse training: few positions, drawn at random over the whole model, are trained, and no others."""

from __future__ import annotations

from cpift.compare.methods.drawn import drawn

RANDOM_SPARSE = drawn(
    "random_sparse",
    "random",
    "inside",
    summary="multi-task SFT of `region.percent` of all parameters, drawn at random; where tasks arrive, others each time",
    trains="few positions, on all rows",
    source="SpaRTA, arXiv:2502.15975",
)
