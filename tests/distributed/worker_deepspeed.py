"""Run by torchrun: freeze a region of a tiny Llama that DeepSpeed trains, in each case, and leave what was seen."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_freezing import some_region
from tiny import uneven
from worker import STEPS, batch

from cpift.errors import CpiftError
from cpift.method.freeze import freeze

CASES = {
    "zero1": (1, False),
    "zero2": (2, False),
    "zero2-bf16": (2, True),
    "zero3": (3, False),
    "zero3-bf16": (3, True),
}


def trained(stage: int, bf16: bool) -> dict[str, Any]:
    """A few steps with a frozen region; what each rank held, and the whole weights."""
    rank, world = dist.get_rank(), dist.get_world_size()
    network = uneven()
    region = some_region(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 50}  # some parameters, not all
    settings = {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.5, "zero_optimization": zero}
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, config={**settings, "bf16": {"enabled": bf16}}
    )  # fmt: skip
    masters = lambda: {n: safe_get_full_fp32_param(p).clone() for n, p in engine.module.named_parameters()}  # noqa: E731
    before, losses, refused = masters(), [], ""
    try:
        with freeze(engine, region, optimizer):
            pass
    except CpiftError as error:
        refused = str(error)
    counts = torch.zeros(world, 2, dtype=torch.int64)
    with freeze(engine, region, engine.optimizer) as frozen:
        for step in range(STEPS):
            ids = batch(step)[rank::world]
            loss = engine(input_ids=ids, labels=ids).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach().float())
        counts[rank] = torch.tensor([frozen.count, frozen.changed()])
    norm = float(engine.get_global_grad_norm())
    after = masters()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=stage == 3):
        model = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
    ids = batch(STEPS)[rank::world]
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()  # no longer frozen
    later, total = masters(), torch.stack(losses)
    dist.all_reduce(counts)
    dist.all_reduce(total)
    return {
        "before": before, "weights": after, "model": model, "later": later, "counts": counts, "norm": norm,
        "losses": total / world, "refused": refused,
    }  # fmt: skip


def main(out: Path) -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does; this one would be compiled first
    deepspeed.init_distributed(dist_backend="gloo")
    found = {}
    for case, (stage, bf16) in CASES.items():
        try:
            found[case] = trained(stage, bf16)
        except Exception:  # the other cases count all the same
            found[case] = {"error": traceback.format_exc()}
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
