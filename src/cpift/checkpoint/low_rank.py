"""A fine-tuned model as its base and a LoRA adapter of a given rank, by singular value decomposition of each update.

The adapter is one of PEFT. What the rank cannot hold, and the tensors that no LoRA is made for, are lost; their share is
part of the report. Frozen positions move.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpift.checkpoint.adapter import has_inputs_first
from cpift.checkpoint.adapter_config import FILE, WEIGHTS
from cpift.checkpoint.align import align
from cpift.checkpoint.companions import TEMPLATE, TOKENIZER
from cpift.checkpoint.merged import read_wide
from cpift.checkpoint.safetensors import write_arrays
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.ties import TIED
from cpift.checkpoint.writer import copy_companions, new_folder
from cpift.errors import CpiftError

_EXACT = 1024  # above, in both dimensions, only the leading singular vectors are computed
_MORE, _ROUNDS = 16, 4  # vectors and power iterations beyond the rank, of the randomised decomposition
REPORT = "export.json"


@dataclass(frozen=True)
class LowRankReport:
    """Squared norms of updates: of all, of what the rank loses, of tensors without LoRA; and these tensors' names."""

    update: float
    lost_by_rank: float
    left_out: float
    names_left_out: tuple[str, ...]
    nbytes: int

    @property
    def lost_share(self) -> float:
        """Share of the update's squared norm that is lost."""
        return (self.lost_by_rank + self.left_out) / self.update if self.update else 0.0


def write_low_rank(
    base: Checkpoint,
    model: Checkpoint,
    out: Path,
    rank: int,
    base_name: str,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> LowRankReport:
    """Write the adapter, with the model's tokenizer beside it, and :data:`REPORT`.

    Linear layers get matrices of the rank. Norms are stored whole. Embeddings, biases and all else are left out. One
    weight and its update are in memory at a time.

    Args:
        base: what the model was made from.
        model: the model.
        out: a new folder, or an empty one.
        rank: r, at least 1.
        base_name: what ``base_model_name_or_path`` will say, a folder or a hub id.
        progress: called with the number of bytes read since the last call.

    Raises:
        CpiftError: models that do not match, a rank below 1, weights of experts, which PEFT would not load.
    """
    if rank < 1:
        raise CpiftError(f"rank: {rank} is below 1")
    model = align(base, model)
    experts = [name for name in base.tensors if ".experts." in name]
    if experts:
        raise CpiftError(
            f"{base.path}: {experts[0]}: PEFT does not load LoRA matrices of single experts; export a delta instead"
        )
    arrays: dict[str, np.ndarray] = {}
    linear, norms, left_out = [], [], []
    update = lost = rest = 0.0
    for name, tensor in base.tensors.items():
        values = read_wide(model.tensors[name], 0, tensor.size).astype(np.float64)
        change = (values - read_wide(tensor, 0, tensor.size)).reshape(tensor.shape)
        norm = float(np.square(change).sum())
        if not np.isfinite(norm):
            raise CpiftError(f"{name}: holds NaN or infinite weights; training diverged")
        update += norm
        module = name.removesuffix(".weight")
        if _is_linear(base, name):
            linear.append(module)
            flipped = has_inputs_first(module, base.config)
            b, a = _factors(change.T if flipped else change, rank)
            arrays[f"base_model.model.{module}.lora_A.weight"] = a
            arrays[f"base_model.model.{module}.lora_B.weight"] = b
            product = b.astype(np.float64) @ a.astype(np.float64)
            lost += float(np.square(change - (product.T if flipped else product)).sum())
        elif norm and len(tensor.shape) == 1 and name.endswith("norm.weight"):
            norms.append(module)
            arrays[f"base_model.model.{name}"] = values.astype(np.float32)
        elif norm:
            left_out.append(name)
            rest += norm
        progress(tensor.nbytes + model.tensors[name].nbytes)
    if not linear:
        raise CpiftError(f"{base.path}: holds no linear layer that LoRA could be made for")
    with new_folder(out) as folder:
        write_arrays(folder / WEIGHTS, arrays, {"format": "pt"})
        config = _config(rank, base_name, linear, norms, base)
        (folder / FILE).write_text(json.dumps(config, indent=2) + "\n")
        for source in model.folders:
            copy_companions(source, folder, lambda file: file in {*TOKENIZER, *TEMPLATE})
        report = LowRankReport(update, lost, rest, tuple(left_out), (folder / WEIGHTS).stat().st_size)
        table = {
            "format": "cpift.low_rank/1",
            "rank": rank,
            "update": update,
            "lost_by_rank": lost,
            "left_out": rest,
            "lost_share": report.lost_share,
            "names_left_out": left_out,
        }
        (folder / REPORT).write_text(json.dumps(table, indent=1) + "\n")
    return report


def _is_linear(base: Checkpoint, name: str) -> bool:
    """Is this the weight of a linear layer, and none that is tied to an embedding?"""
    if len(base.tensors[name].shape) != 2 or not name.endswith(".weight"):
        return False
    inputs = {source for _, source in TIED} | {"wpe.weight"}
    embedding = any(name == end or name.endswith("." + end) for end in inputs)
    return not embedding and name not in base.aliases.values()


def _factors(change: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """B, (outputs, rank), and A, (rank, inputs), float32: B·A is the best approximation of that rank."""
    outputs, inputs = change.shape
    kept = min(rank, outputs, inputs)
    if min(outputs, inputs) <= _EXACT:
        left, sizes, right = np.linalg.svd(change, full_matrices=False)
    else:  # Halko, Martinsson and Tropp, arXiv:0909.4061, algorithm 4.4; the same vectors at every call
        basis = change @ np.random.default_rng(0).standard_normal((inputs, kept + _MORE))
        for _ in range(_ROUNDS):
            basis = np.linalg.qr(change @ np.linalg.qr(change.T @ np.linalg.qr(basis)[0])[0])[0]
        small, sizes, right = np.linalg.svd(basis.T @ change, full_matrices=False)
        left = basis @ small
    roots = np.sqrt(sizes[:kept])
    b, a = np.zeros((outputs, rank), np.float32), np.zeros((rank, inputs), np.float32)
    b[:, :kept], a[:kept] = left[:, :kept] * roots, roots[:, None] * right[:kept]
    return b, a


def _config(rank: int, base_name: str, linear: list[str], norms: list[str], base: Checkpoint) -> dict[str, object]:
    """adapter_config.json: by the last parts of the modules' names, as PEFT selects them."""
    targets = sorted({module.rpartition(".")[2] for module in linear})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "modules_to_save": sorted({module.rpartition(".")[2] for module in norms}) or None,
        "fan_in_fan_out": any(has_inputs_first(module, base.config) for module in linear),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
