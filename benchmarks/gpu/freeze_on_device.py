"""freeze() on the device: do frozen elements keep every bit, and what share of a step does it take?

Needs only torch and cpift.freeze. A transformer of SmolLM2-135M's size in plain torch, bf16 autocast, gradient
clipping. For each optimizer and share of frozen elements: steps without and with freezing in turn, then two steps of
two accumulated passes each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from step import Step, allocated, device, is_cuda, is_out_of_memory, one_line, release, run, synchronize
from torch import nn

STEPS = 3  # in a row, without leaving freeze()
ROUNDS = 12  # at most

Make = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Size:
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    wide: int
    rows: int
    tokens: int


LARGE = Size(49152, 576, 30, 9, 1536, rows=8, tokens=256)
SMALL = Size(512, 64, 2, 4, 128, rows=2, tokens=16)


class Network(nn.Module):
    """Embedding, layers, and the embedding again as head."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.hidden)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                size.hidden, size.heads, size.wide, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(size.layers)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return nn.functional.cross_entropy((hidden @ self.embedding.weight.T).flatten(0, 1).float(), ids.flatten())


def optimizers() -> dict[str, Make | str]:
    """By name: how it is made, or why it is not here."""
    found: dict[str, Make | str] = {
        "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.1, foreach=False, fused=False),
        "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.1, fused=True),
        "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.1, foreach=True),
        "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    }
    try:
        from bitsandbytes.optim import AdamW8bit

        found["AdamW 8-bit, bitsandbytes"] = lambda p: AdamW8bit(p, lr=1e-4, weight_decay=0.1)
    except Exception as error:  # its native part may be missing for this CUDA
        found["AdamW 8-bit, bitsandbytes"] = f"bitsandbytes does not import: {one_line(error)}"
    try:
        from torchao.optim import AdamW8bit as Torchao8bit

        found["AdamW 8-bit, torchao"] = lambda p: Torchao8bit(p, lr=1e-4, weight_decay=0.1)
    except Exception as error:
        found["AdamW 8-bit, torchao"] = f"torchao does not import: {one_line(error)}"
    return found


def region(network: nn.Module, percent: float) -> Any:
    """A random region of this share of every parameter."""
    import numpy as np

    from cpift import Region

    rng = np.random.default_rng(0)
    positions = {}
    for name, parameter in network.named_parameters():
        chosen = np.flatnonzero(rng.random(parameter.numel(), dtype=np.float32) < percent / 100)
        if len(chosen):
            positions[name] = chosen.astype(np.int32)
    return Region(positions, sum(p.numel() for p in network.parameters()))


class Loop:
    """Training steps of one network by one optimizer, timed."""

    def __init__(self, network: Network, optimizer: torch.optim.Optimizer, size: Size) -> None:
        self.network, self.optimizer = network, optimizer
        self._ids = torch.randint(0, size.vocabulary, (size.rows, size.tokens), device=device())

    def step(self, passes: int = 1) -> float:
        """Seconds of one step."""
        synchronize()
        began = time.perf_counter()
        for _ in range(passes):
            with torch.autocast(device().type, torch.bfloat16):
                loss = self.network(self._ids)
            (loss / passes).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - began


class Bits:
    """A copy of every parameter as integers, and what differs from it later."""

    def __init__(self, network: nn.Module, held: Any) -> None:
        self._network = network
        self._frozen = {n: torch.as_tensor(p, dtype=torch.int64, device=device()) for n, p in held.positions.items()}
        self._before = {name: self._now(parameter) for name, parameter in network.named_parameters()}

    @staticmethod
    def _now(parameter: nn.Parameter) -> torch.Tensor:
        return parameter.detach().clone().view(-1).view(torch.int32)

    def changed(self) -> tuple[int, int]:
        """Frozen elements that changed, and free ones that did."""
        frozen = everything = 0
        for name, parameter in self._network.named_parameters():
            differs = self._now(parameter) != self._before[name]
            everything += int(differs.sum())
            if name in self._frozen:
                frozen += int(differs[self._frozen[name]].sum())
        return frozen, everything - frozen


def plant(network: nn.Module, held: Any) -> None:
    """Values that a careless copy would change (-0.0, denormals), at frozen positions of every parameter."""
    odd = torch.tensor([-0.0, 1e-41, -1e-41])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in held.positions:
                index = torch.as_tensor(held.positions[name][:3], dtype=torch.int64)
                parameter.view(-1)[index.to(parameter.device)] = odd[: len(index)].to(parameter.device)


def work(step: Step) -> None:
    size = SMALL if step.tiny else LARGE
    if not is_cuda() and not step.tiny:
        size = Size(8192, 256, 4, 4, 1024, rows=4, tokens=64)
    torch.manual_seed(0)
    network = Network(size).to(device())
    total = sum(p.numel() for p in network.parameters())
    step.record.add("parameters", total / 1e6, "million", f"{size.rows} rows of {size.tokens} tokens")
    makers = optimizers()
    # The least usual share comes last: it is left out where the time is short.
    percents = (1, 30) if step.tiny else (1, 3, 30, 90)
    regions: dict[int, Any] = {}
    cases = [(percent, name) for percent in percents for name in makers]
    for number, (percent, name) in enumerate(cases):
        what = f"{name}, {percent} % frozen"
        make = makers[name]
        if isinstance(make, str):
            if percent == percents[0]:
                step.record.leave_out(name, make)
            continue
        if step.left() < 0.5:
            step.record.leave_out(what, "the time was up")
            continue
        if percent not in regions:
            regions = {percent: region(network, percent)}
        runnable = sum(not isinstance(makers[later], str) for _, later in cases[number:])
        try:
            loop = Loop(network, make(network.parameters()), size)
            _case(step, what, loop, regions[percent], 0.0 if step.tiny else step.left() / runnable)
        except Exception as error:  # one optimizer that cannot work here must not cost the others
            if not is_out_of_memory(error) and not name.startswith("AdamW 8-bit"):
                raise
            step.record.leave_out(what, one_line(error))
        network.zero_grad()
        release()


def _case(step: Step, what: str, loop: Loop, held: Any, seconds: float) -> None:
    """Rounds of steps without and with freezing, as many as the time allows, and what they say."""
    until = time.monotonic() + seconds
    loop.step()
    loop.step()  # the second finds memory and optimizer state there
    without: list[float] = []
    shares: list[float] = []
    frozen = free = extra = 0
    for number in range(ROUNDS):
        if number and time.monotonic() > until:
            break
        plain = [loop.step() for _ in range(STEPS)]
        with _frozen(loop, held) as (bits, more):
            loop.step()  # the first one of a context touches the positions for the first time
            slowed = [loop.step() for _ in range(STEPS)]
            if number == 0:
                loop.step(passes=2)
                loop.step(passes=2)
            changed, moved = bits.changed()
        frozen, free, extra = frozen + changed, free + moved, max(extra, more)
        without += plain
        shares.append(statistics.median(slowed) / statistics.median(plain) - 1)
    note = f"step {statistics.median(without) * 1e3:.2f} ms without; rounds {len(shares)}, {min(shares):+.1%} to {max(shares):+.1%}"
    if extra:
        note += f"; {extra / held.count:.1f} bytes a frozen element"
    step.record.add(what, 100 * statistics.median(shares), "% of a step", note)
    if frozen:
        step.record.fault(f"{what}: {frozen} changes of frozen elements")
    if not free:
        step.record.fault(f"{what}: no free element moved, so that the test says nothing")


@contextmanager
def _frozen(loop: Loop, held: Any) -> Iterator[tuple[Bits, int]]:
    """Within freeze(): the bits before it, and the device memory that it takes."""
    from cpift import freeze

    plant(loop.network, held)
    bits = Bits(loop.network, held)
    before = allocated()
    with freeze(loop.network, held, loop.optimizer):
        yield bits, allocated() - before


if __name__ == "__main__":
    run(work)
