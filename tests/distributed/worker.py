"""What each process does: freeze a region of a tiny Llama sharded by FSDP2, train, and leave what each rank saw."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from test_freezing import some_region
from tiny import tokenizer, uneven
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from cpift.method.freeze import freeze
from cpift.train.models import gathered, save

STEPS = 3


def batch(step: int) -> torch.Tensor:
    """The global batch of a step: 4 rows."""
    return torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(step))


def main(out: Path) -> None:
    sharded = "RANK" in os.environ
    rank, world = 0, 1
    network = uneven()
    region = some_region(network)
    if sharded:
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
        for layer in network.model.layers:
            fully_shard(layer, shard_placement_fn=lambda p: Shard(1) if p.shape == (9, 6) and world == 2 else None)
        fully_shard(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    with freeze(network, region, optimizer) as frozen:
        for step in range(STEPS):
            ids = batch(step)[rank::world]
            loss = network(input_ids=ids, labels=ids).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        counts = torch.zeros(world, 2, dtype=torch.int64)
        counts[rank] = torch.tensor([frozen.count, frozen.changed()])
    total = torch.stack(losses)
    if sharded:
        dist.all_reduce(counts)
        dist.all_reduce(total)
    whole = gathered(network)
    if rank == 0:
        save(network, tokenizer(), out.with_name(out.name + "-saved"), whole)
    state = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in network.named_parameters()}
    if rank == 0:
        weights = {n: p.detach() for n, p in state.items()}
        torch.save({"weights": weights, "counts": counts, "losses": total / world, "norm": float(norm)}, out)
    if sharded:
        dist.destroy_process_group()
