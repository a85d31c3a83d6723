"""Additions to a tiny model, ``mine``, that was made from ``base``: recipes and what the tests look at. No fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cpift.method.region import Region

TRAINING = {"per_device_train_batch_size": 4, "bf16": False, "max_length": 64, "learning_rate": 1e-2}


def models(folder: Path) -> Path:
    """``base``, and ``mine``: another model in bf16 that was made from it."""
    tiny.base(folder / "base")
    tiny.base(folder / "mine")
    model = AutoModelForCausalLM.from_pretrained(folder / "mine")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(folder / "mine")
    return folder


def arrivals(place: Path, order: list[str], kept: list[str], **changes: Any) -> dict[str, Any]:
    """A recipe that adds tasks to ``place/mine``."""
    tasks = {
        task: {
            "train": str(tiny.jsonl(place / f"{task}.train.jsonl", tiny.rows(task, 12, 0))),
            "eval": str(tiny.jsonl(place / f"{task}.eval.jsonl", tiny.rows(task, 4, 1))),
        }
        for task in [*kept, *order]
    }
    protect = {"percent": 5.0, "interpolation": "linear", "average": 0.75, **changes.pop("protect", {})}
    more = changes.pop("arrivals", {})
    return {
        "model": str(place / "mine"),
        "base": str(place / "base"),
        "tasks": tasks,
        "arrivals": {"order": order, "examples_per_task": 3, **more},
        "region": {"percent": 5.0},
        "protect": protect,
        "training": TRAINING,
        **changes,
    }


def values(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, flat."""
    return {name: tensor.flatten() for name, tensor in load_file(folder / "model.safetensors").items()}


def region(folder: Path) -> dict[str, np.ndarray]:
    """Positions of a stage's region."""
    return dict(Region.load(folder / "region.safetensors").positions)


def same_bits(a: Path, b: Path) -> bool:
    """Have two checkpoints the same bits, in any type?"""
    left, right = values(a), values(b)
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left
    )


def changed(before: Path, after: Path, where: dict[str, np.ndarray]) -> int:
    """Number of positions whose bits differ between two models."""
    old, new, count = values(before), values(after), 0
    for name, positions in where.items():
        at = torch.from_numpy(positions.astype(np.int64))
        count += int((old[name][at].view(torch.int16) != new[name][at].view(torch.int16)).sum())
    return count
