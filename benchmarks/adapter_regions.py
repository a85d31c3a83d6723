"""Does a LoRA probe find the region of full fine-tuning? python benchmarks/adapter_regions.py MODEL SCRATCH

MODEL: a folder or a GGUF file, such as SmolLM2-135M. For each seed and generated task: a probe of all parameters, and LoRA
probes, on the same rows in the same order. Prints Jaccard beside chance, by module, the median over tasks and seeds with the
range; and as the ceiling, full probes of two seeds (other rows). SCRATCH/adapter_regions.json is written after each probe.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agreement import Agreement, agreement

from cpift.checkpoint.reader import open_checkpoint
from cpift.data.encoding import encode_all
from cpift.data.rows import load_task
from cpift.method.identify import identify
from cpift.method.region import Region
from cpift.recipe.adapter import Adapter
from cpift.recipe.task import Task
from cpift.train.fine_tune import fine_tune
from cpift.train.models import convert_gguf, load_tokenizer
from cpift.train.spec import TrainSpec

TASKS = ("number_sequence", "letter_counting", "calendar_arithmetic")
OUTSIDE = ("*embed*", "*norm*")  # what LoRA on all linear layers does not change
BATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of reasoning_gym's data sets")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of the probe of all parameters")
    parser.add_argument("--lora-rate", type=float, default=2e-3)
    parser.add_argument("--percent", default="1")
    given = parser.parse_args(arguments)
    given.scratch.mkdir(parents=True, exist_ok=True)
    base = given.model
    if base.suffix == ".gguf":
        base = given.scratch / "base"
        if not base.is_dir():
            convert_gguf(given.model, base)
    tensors = open_checkpoint(base).tensors
    whole = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    adapted = {name: size for name, size in whole.items() if not any(word.strip("*") in name for word in OUTSIDE)}
    lines: list[dict[str, Any]] = []
    full: dict[tuple[str, int], dict[str, Region]] = {}
    for seed in given.seeds:
        for task in given.tasks:
            regions = {}
            for rank in (None, *given.ranks):
                name = "full" if rank is None else f"LoRA r = {rank}"
                began = time.perf_counter()
                regions[name] = _probe(base, task, seed, rank, given)
                print(f"{task}, seed {seed}, {name}: {time.perf_counter() - began:.0f} s", flush=True)
                if rank is not None:
                    pair = f"{name} beside full"
                    lines += _compared(pair, task, seed, regions["full"], regions[name], whole, adapted)
                _save(given.scratch, given, lines)
            full[task, seed] = regions["full"]
            for other in given.seeds[: given.seeds.index(seed)]:
                lines += _compared("full, two seeds", task, seed, full[task, other], regions["full"], whole, adapted)
            _save(given.scratch, given, lines)
            print(table(lines), flush=True)


def _probe(base: Path, task: str, seed: int, rank: int | None, given: argparse.Namespace) -> dict[str, Region]:
    """Train a probe; its regions of the whole model and of the adapted layers alone. The probe is removed."""
    loaded = load_task(task, Task(generate=task, train=given.rows, eval=1), seed)
    rows, _ = encode_all(loaded.train, load_tokenizer(base), 512)
    out = given.scratch / "probe"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    settings = {
        "learning_rate": given.rate if rank is None else given.lora_rate,
        "per_device_train_batch_size": BATCH,
        "save_strategy": "no",
        "train_sampling_strategy": "group_by_length",
    }
    spec = TrainSpec(settings, math.ceil(given.rows / BATCH), seed, adapter=None if rank is None else Adapter(r=rank))
    fine_tune(base, rows, out, spec)
    regions = {
        "whole model": identify(base, {task: out}, given.percent)[task],
        "adapted layers": identify(base, {task: out}, given.percent, exclude=OUTSIDE)[task],
    }
    shutil.rmtree(out)
    return regions


def _compared(
    pair: str,
    task: str,
    seed: int,
    first: dict[str, Region],
    second: dict[str, Region],
    whole: dict[str, int],
    adapted: dict[str, int],
) -> list[dict[str, Any]]:
    """One line a kind of module: of regions of the whole model "all" alone, of the adapted layers each kind."""
    of_model = {"whole model": agreement(first["whole model"], second["whole model"], whole)["all"]}
    agreements: dict[str, Agreement] = {
        **of_model,
        **agreement(first["adapted layers"], second["adapted layers"], adapted),
    }
    return [
        {"pair": pair, "task": task, "seed": seed, "of": kind, "jaccard": part.jaccard, "chance": part.chance}
        for kind, part in agreements.items()
    ]


def _save(scratch: Path, given: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    settings = {key: value if not isinstance(value, Path) else value.name for key, value in vars(given).items()}
    partial = scratch / "adapter_regions.json.partial"
    partial.write_text(json.dumps({"settings": settings, "lines": lines}, indent=1), encoding="utf-8")
    os.replace(partial, scratch / "adapter_regions.json")


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Median of Jaccard over tasks and seeds, its range, and the median of chance: one row a kind, one column a pair."""
    pairs = list(dict.fromkeys(line["pair"] for line in lines))
    rows = [f"| region of | {' | '.join(pairs)} | chance |", "|---|" + "---|" * (len(pairs) + 1)]
    for kind in dict.fromkeys(line["of"] for line in lines):
        cells, chances = [], []
        for pair in pairs:
            some = [line for line in lines if (line["pair"], line["of"]) == (pair, kind)]
            values = [line["jaccard"] for line in some]
            chances += [line["chance"] for line in some]
            spread = f" ({min(values):.3f}–{max(values):.3f}; n = {len(values)})" if values else ""
            cells.append(f"{statistics.median(values):.3f}{spread}" if values else "–")
        rows.append(f"| {kind} | {' | '.join(cells)} | {statistics.median(chances):.3f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
