"""Batches of rows to score, by the memory that a row takes: its logits where they are read, its cache where text is made."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cpift.distributed.sharing import ALONE, Share
from cpift.errors import OutOfMemory, is_out_of_memory
from cpift.train import accelerator
from cpift.typing import Network

LOGITS = 200_000_000  # of a batch on a processor: padded tokens × vocabulary, 0.8 GB in fp32
CACHE = 2_000_000_000  # bytes of a batch that is generated on a processor
ROWS_ON_CPU, ROWS_ON_DEVICE = 128, 512  # of a batch that is generated: finished rows wait for the longest one
_TOKENS = 65_536  # padded tokens of a forward pass on a device: more of them make it no faster
_INDEXED = 2**31  # logits of a batch on a device: some kernels count elements in 32 bits
_UNBOUNDED = 2**31
_SHORT = 4  # tokens of the shorter pass that measures a cache: below any window
_MARGIN = 1.25  # a cache grows by copies of a layer, in pieces of many sizes


@dataclass(frozen=True)
class Room:
    """What a batch may take: ``nbytes`` at ``cost(length)`` bytes a row, padded to the longest, and ``rows``."""

    nbytes: int
    cost: Callable[[int], int]
    rows: int


def batches(lengths: Sequence[int], room: Room) -> Iterator[list[int]]:
    """Row numbers, rows of like length together, the longest first: what does not fit is seen at once, not at the end.

    A row that is too long for the room is a batch of its own.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) == room.rows or room.cost(lengths[batch[0]]) * (len(batch) + 1) > room.nbytes):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def in_batches(
    lengths: Sequence[int], room: Room, work: Callable[[list[int]], None], share: Share = ALONE
) -> list[int]:
    """Do ``work`` on every batch. One that there is no memory for is halved, those that follow take no more: scores are the same.

    Several processes make the batches of one process, each its share of them: so the outcomes have the same bits.

    Args:
        lengths: tokens of each row, the same in all processes.
        room: what a batch may take; of several processes the least counts.
        work: called with the numbers of a batch's rows.
        share: of this process.

    Returns:
        Numbers of the rows that this process has done.

    Raises:
        OutOfMemory: for a batch of one row.
    """
    room = replace(room, nbytes=min(share.gather(room.nbytes)))
    due, done = deque(share.own(list(batches(lengths, room)))), list[int]()
    while due:
        batch = due.popleft()
        if _done(work, batch):
            done += batch
            continue
        accelerator.release()
        longest = lengths[batch[0]]
        if len(batch) == 1:
            raise OutOfMemory(
                f"out of memory on {accelerator.describe()} in scoring a batch of 1 row, {longest} tokens"
            )
        rest = [i for later in (batch, *due) for i in later]
        room = replace(room, nbytes=-(-len(batch) // 2) * room.cost(longest))
        due = deque([rest[j] for j in part] for part in batches([lengths[i] for i in rest], room))
    return done


def _done(work: Callable[[list[int]], None], batch: list[int]) -> bool:
    try:
        work(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False  # the error goes here, and with it the tensors of the calls that it ended
    return True


def forced_room(network: Network) -> Room:
    """For one forward pass over rows whose logits are all read."""
    vocabulary = _vocabulary(network)
    if network.device.type == "cpu":
        return Room(LOGITS, lambda length: length * vocabulary, _UNBOUNDED)
    measured_cache(network)  # autocast keeps the weights that it casts here, before free memory is read
    logits = vocabulary * (2 if torch.is_autocast_enabled(network.device.type) else 4)
    each = logits + _activations(network)
    most = min(_TOKENS, _INDEXED // vocabulary) * each
    pair = _attention_scores(network)
    free = accelerator.available() or 4 * LOGITS
    return Room(min(free, most), lambda length: length * (each + pair * length), _UNBOUNDED)


def generation_room(network: Network, new_tokens: int) -> Room:
    """For prompts, by length, that ``new_tokens`` are generated to: the cache they make, and logits of the last token."""
    cache, vocabulary = measured_cache(network), _vocabulary(network)
    last = 12 * vocabulary  # as the model gives them, in fp32, and what is made of these
    keeps = "logits_to_keep" in inspect.signature(network.forward).parameters
    prompt = _activations(network) + (0 if keeps else 8 * vocabulary)
    pair = _attention_scores(network)

    def cost(length: int) -> int:
        begun = cache.of(length) + length * (prompt + pair * length)
        return int(last + max(begun, _MARGIN * cache.of(length + new_tokens)))

    if network.device.type == "cpu":
        return Room(CACHE, cost, ROWS_ON_CPU)
    return Room(accelerator.available() or CACHE, cost, ROWS_ON_DEVICE)


@dataclass(frozen=True)
class CacheSize:
    """Bytes that generation keeps of a row; ``layers``: fixed bytes, bytes a token, and tokens kept at most or None."""

    layers: tuple[tuple[int, int, int | None], ...]

    def of(self, tokens: int) -> int:
        """Bytes for a row of this number of tokens, padding included."""
        return sum(fixed + each * (tokens if most is None else min(tokens, most)) for fixed, each, most in self.layers)


@torch.no_grad()
def measured_cache(network: Network) -> CacheSize:
    """Measured on two short passes, as configurations have many spellings of it: grouped heads, windows, states.

    What a layer keeps grows by the token up to its sliding window; a state is as large at any length.
    """
    first, second = (_layers_after(network, width) for width in (_SHORT, 2 * _SHORT))
    if not first or len(first) != len(second):
        inner = network.config.get_text_config()
        each = 8 * int(getattr(inner, "hidden_size", 4096)) * int(getattr(inner, "num_hidden_layers", 32))
        return CacheSize(((0, each, None),))  # keys and values of the full width in fp32: the most that is usual
    layers = []
    for (small, window), (large, _) in zip(first, second, strict=True):
        each = -(-(large - small) // _SHORT)
        layers.append((max(0, small - _SHORT * each), each, window))
    return CacheSize(tuple(layers))


def _layers_after(network: Network, width: int) -> list[tuple[int, int | None]]:
    """Bytes of each layer's cache after a pass over a row of ``width`` tokens, and its sliding window."""
    ids = torch.zeros((1, width), dtype=torch.long, device=network.device)
    try:
        out = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    except TypeError:  # a model with code of its own that knows no cache
        return []
    cache = getattr(out, "past_key_values", None)
    cache = cache if cache is not None else getattr(out, "cache_params", None)
    layers = getattr(cache, "layers", None) or ([] if cache is None else [cache])
    return [(cache_bytes(layer), getattr(layer, "sliding_window", None)) for layer in layers]


def cache_bytes(held: object, seen: set[int] | None = None) -> int:
    """Bytes of all tensors within an object, each once."""
    seen = set() if seen is None else seen
    if id(held) in seen:
        return 0
    seen.add(id(held))
    if isinstance(held, torch.Tensor):
        return held.numel() * held.element_size()
    if isinstance(held, dict):
        return sum(cache_bytes(value, seen) for value in held.values())
    if isinstance(held, list | tuple):
        return sum(cache_bytes(value, seen) for value in held)
    return sum(cache_bytes(value, seen) for value in vars(held).values()) if hasattr(held, "__dict__") else 0


def _vocabulary(network: Network) -> int:
    return int(network.get_output_embeddings().weight.shape[0])


def _activations(network: Network) -> int:
    """Bytes of a token within a pass that keeps nothing for a backward pass, generously: a layer's widest moment."""
    inner = network.config.get_text_config()
    hidden = int(network.get_input_embeddings().weight.shape[1])
    wide = getattr(inner, "intermediate_size", None)
    widest = max(wide) if isinstance(wide, list | tuple) else int(wide or 4 * hidden)
    experts = int(getattr(inner, "num_experts_per_tok", None) or 1)
    return 4 * (8 * hidden + 3 * widest * experts)


def _attention_scores(network: Network) -> int:
    """Bytes of a pair of tokens: scores of every head where attention makes them whole, else the mask."""
    inner = network.config.get_text_config()
    eager = getattr(inner, "_attn_implementation", None) in (None, "eager")
    heads = int(getattr(inner, "num_attention_heads", None) or 32)
    return 8 * heads if eager else 4
