"""The drawings of the site: as scripts/site/drawings.py makes them, and what they show is what torch does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, object]:
    return runpy.run_path(str(ROOT / "scripts" / "site" / "drawings.py"))


def test_the_files_are_those_of_the_script(script: dict[str, object]) -> None:
    folder = ROOT / "docs" / "images" / "concepts"
    drawn = {f"{name}.svg": draw() for name, draw in script["DRAWINGS"].items()}  # type: ignore[attr-defined]
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == drawn


def test_the_curve_is_that_of_adamw(script: dict[str, object]) -> None:
    """Of torch's, in float64: ten steps with gradient 1, then none."""
    parameter = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1)
    values = [1.0]
    for step in range(40):
        parameter.grad = torch.full_like(parameter, float(step < 10))
        optimizer.step()
        values.append(parameter.item())
    assert script["adamw"](40, 10) == pytest.approx(values, abs=1e-12)  # type: ignore[operator]
    assert values[40] < values[10] - 0.05


def test_the_values_of_bf16_are_neighbours(script: dict[str, object]) -> None:
    """Rounded to bf16 each of the three is itself, no value lies between, and + 0.0001 rounds back to the first."""
    shown = [float(number) for number in re.findall(r">(0\.10\d{3})<", script["half_precision"]())[:3]]  # type: ignore[operator]
    exact = torch.tensor(shown).bfloat16()
    assert (exact.float() - torch.tensor(shown)).abs().max() < 1e-5
    assert torch.equal(exact.view(torch.int16).diff(), torch.ones(2, dtype=torch.int16))
    moved = (exact[0].float() + torch.tensor([1e-4, 3e-4])).bfloat16()
    assert torch.equal(moved, exact[:2])
