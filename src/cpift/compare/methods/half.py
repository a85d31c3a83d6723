"""Half fine-tuning: half of each layer's matrices, drawn at random, stays as it is."""

from __future__ import annotations

from cpift.compare.methods.drawn import drawn

HALF_FINE_TUNING = drawn(
    "half_fine_tuning",
    "half",
    "kept",
    summary="multi-task SFT with half of each layer's matrices frozen, drawn at random; where tasks arrive, another half each time",
    trains="half of each layer, on all rows",
    source="HFT, arXiv:2404.18466",
)
