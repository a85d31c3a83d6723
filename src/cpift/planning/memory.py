"""Memory of a run, from shapes alone: of each GPU in training, by sharding, and of what is no training.

docs/plan.md shows the formulas. They count what PyTorch keeps; attention that does not keep its scores (SDPA) is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CARDS = (24, 40, 80)  # GB as 10^9 bytes: what a card has above that, CUDA itself and fragments take
_TILE = 4096, 32768  # tokens and words of the logits that TRL's fused head makes at a time
_LOGITS = 200_000_000  # batching.LOGITS, which cannot be imported without torch
_MASKED_FROM = 0.1  # freeze._MASKED_FROM, which cannot be imported without torch
_BLOCK = 2**20  # elements of a checkpoint in work at a time

Sharding = Literal["data parallel", "FSDP2"]


@dataclass(frozen=True)
class Shape:
    """Elements of a model, tied ones once: all, of its largest layer, of its output head; and its widths."""

    parameters: int
    layer: int
    head: int
    layers: int
    hidden: int
    intermediate: int
    attention: int  # heads × the width of a head
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class Adapted:
    """An adapter that is trained in place of all parameters.

    Attributes:
        trained: its elements.
        rank: r.
        maps: adapted maps of a layer.
        layer: elements of the adapted weights of a layer.
        weights: bytes of the model beneath, as it is loaded.
        merged: does the forward pass make the merged weight? False: the adapter's output is added to the layer's.
        four_bit: is the model beneath quantised?
    """

    trained: int
    rank: int
    maps: int
    layer: int
    weights: int
    merged: bool = False
    four_bit: bool = False


@dataclass(frozen=True)
class Step:
    """One forward pass of one process, and how it is made."""

    tokens: int  # rows × the longest row, padding included
    bf16: bool = True  # autocast over fp32 weights
    checkpointing: bool = False
    accumulates: bool = False
    synced: bool = False  # gradients are reduced after each pass, by accelerate's sync_each_batch
    width: int = 4  # bytes of a weight, of its gradient, and of each of its two moments
    frozen: int = 0  # elements of the model that are kept as they are
    adapter: Adapted | None = None  # trained in place of all parameters


@dataclass(frozen=True)
class Training:
    """Bytes on one GPU. ``peak`` is what it must have."""

    weights: int
    moments: int
    gradients: int
    buckets: int
    unsharded: int
    frozen: int
    copies: int
    activations: int
    logits: int
    accumulates: bool

    @property
    def peak(self) -> int:
        """Gradients come as activations go: the more of the two counts, or both where gradients stay between passes."""
        kept = self.weights + self.moments + self.buckets + self.unsharded + self.frozen
        passing = self.copies + self.activations + self.logits
        return kept + (self.gradients + passing if self.accumulates else max(self.gradients, passing))


def shape_of(sizes: Mapping[str, int], config: Mapping[str, object]) -> Shape:
    """The shape of a checkpoint.

    Args:
        sizes: elements by parameter, tied ones once.
        config: its ``config.json``.
    """
    text = config.get("text_config")
    inner: Mapping[str, object] = text if isinstance(text, dict) else config

    def number(*names: str) -> int:
        """The first of these keys that has a value; 0 without any."""
        return next((value for name in names if isinstance(value := inner.get(name), int) and value), 0)

    layers: dict[str, int] = {}
    for name, size in sizes.items():
        if found := re.match(r"(.*?\.\d+)\.", name):
            layers[found[1]] = layers.get(found[1], 0) + size
    vocabulary = number("vocab_size")
    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head") or 1
    return Shape(
        parameters=sum(sizes.values()),
        layer=max(layers.values(), default=0),
        head=vocabulary * hidden,
        layers=len(layers),
        hidden=hidden,
        intermediate=number("intermediate_size") or 4 * hidden,
        attention=heads * (number("head_dim") or hidden // heads),
        heads=heads,
        vocabulary=vocabulary,
    )


def training(shape: Shape, step: Step, gpus: int, sharding: Sharding) -> Training:
    """Memory of each of ``gpus`` GPUs in a training with AdamW."""
    parts = gpus if sharding == "FSDP2" else 1
    if step.adapter is not None:
        return _adapter_training(shape, step, step.adapter, gpus, parts)
    share = -(-shape.parameters // parts)
    width = 2 if step.bf16 or step.width == 2 else 4
    # The head stays whole from forward to backward; of the layers, the one in work and the next; with their gradients.
    whole = 2 * width * (shape.head + 2 * shape.layer)
    if step.accumulates and not step.synced:
        whole += width * shape.parameters  # between passes FSDP2 keeps all gradients unsharded
    return Training(
        weights=step.width * share,
        moments=2 * step.width * share,
        gradients=step.width * share,
        buckets=step.width * shape.parameters if sharding == "data parallel" and gpus > 1 else 0,
        unsharded=whole if parts > 1 else 0,
        frozen=_frozen(step, shape.parameters, parts),
        copies=2 * shape.parameters if step.bf16 and step.width > 2 and parts == 1 else 0,
        activations=activations(shape, step),
        logits=min(step.tokens, _TILE[0]) * min(shape.vocabulary, _TILE[1]) * (width + 4),
        accumulates=step.accumulates,
    )


def _adapter_training(shape: Shape, step: Step, adapter: Adapted, gpus: int, parts: int) -> Training:
    """The same where an adapter alone is trained: the model beneath has no gradients and no moments."""
    width = 2 if step.bf16 or step.width == 2 else 4
    share = -(-adapter.trained // parts)
    whole = width * (shape.head + 2 * shape.layer)  # of the layers, the one in work and the next; without gradients
    return Training(
        weights=-(-adapter.weights // parts) + 4 * share,
        moments=8 * share,
        gradients=4 * share,
        buckets=4 * adapter.trained if parts == 1 and gpus > 1 else 0,
        unsharded=whole if parts > 1 else 0,
        frozen=8 * step.frozen,  # an int64 position; the values are the weights themselves
        copies=_copies(shape, step, adapter) if parts == 1 else 0,
        activations=activations(shape, step) + step.tokens * adapter.maps * adapter.rank * width * shape.layers,
        logits=min(step.tokens, _TILE[0]) * min(shape.vocabulary, _TILE[1]) * (width + 4),
        accumulates=step.accumulates,
    )


def _copies(shape: Shape, step: Step, adapter: Adapted) -> int:
    """Weights in the type of the forward pass, which the backward pass needs again.

    Autocast keeps no casts of weights that are not trained, but each layer keeps its own until the backward pass; with
    checkpointing only the layer in work. Weights in 4 bit are expanded anew in each pass.
    """
    width = 2 if step.bf16 else 4
    if step.width == 2 and not adapter.four_bit:
        return 0  # they are in that type already
    head = 2 * shape.head if step.bf16 else 0
    once = step.checkpointing or adapter.four_bit
    if not adapter.merged:
        cast = shape.layer * (1 if once else shape.layers)
        return head + (width * cast if step.bf16 or adapter.four_bit else 0)
    # The merged weight of each adapted layer; of the one in work also the product, the sum and its gradient, in fp32;
    # and what 4 bits expand to.
    kept = adapter.layer * (1 if step.checkpointing else shape.layers)
    return head + width * kept + (4 if adapter.four_bit else 3) * 4 * adapter.layer


def _frozen(step: Step, parameters: int, parts: int) -> int:
    """The value of each frozen element, and its int64 position; from a tenth of all on, a bit for each parameter."""
    places = 8 * step.frozen if step.frozen < _MASKED_FROM * parameters else parameters // 8
    return -(-(step.width * step.frozen + places) // parts)


def activations(shape: Shape, step: Step) -> int:
    """What the layers keep for the backward pass; with checkpointing each layer's input, and one layer's all."""
    layer = step.tokens * layer_activations(shape, step.bf16 or step.width == 2)
    if step.checkpointing:
        return step.tokens * 4 * shape.hidden * shape.layers + layer
    return layer * shape.layers


def layer_activations(shape: Shape, bf16: bool) -> int:
    """Bytes that a Llama layer keeps of one token.

    The two norms keep their fp32 input and what they normed; each linear map its input, which autocast casts once a map;
    attention queries, keys and values as many as heads, what it gives, and that again in the order of the next map.
    """
    width, maps = (2, 5) if bf16 else (4, 2)  # in fp32 the maps after a norm share one input
    norms = 4 * 4 * shape.hidden + 2 * 4  # and a scale each
    inputs = maps * width * shape.hidden
    attention = 5 * width * shape.attention + 4 * shape.heads
    return norms + inputs + attention + 4 * width * shape.intermediate


def scoring(shape: Shape, longest: int) -> int:
    """Bytes on the GPU of the process that scores: the whole model in fp32, and a batch of logits with their losses."""
    tokens = max(longest, _LOGITS // max(shape.vocabulary, 1))
    layer = 4 * (4 * shape.hidden + 3 * shape.intermediate)
    return 4 * shape.parameters + tokens * layer + 3 * 4 * tokens * shape.vocabulary


def identifying(core: int, tasks: int, threads: int) -> int:
    """Bytes of main memory, mapped files apart: buffers of 2·k candidates, 8 bytes each, and blocks in work."""
    return tasks * 16 * core + threads * tasks * 8 * _BLOCK


def fusing(core: int, tasks: int, threads: int) -> int:
    """Bytes of main memory, mapped files apart: the regions (a position and a sign), and blocks on their way out."""
    return tasks * 5 * core + 3 * threads * 8 * _BLOCK


def loading(shape: Shape, processes: int) -> int:
    """Bytes of main memory on a node as a training starts: each of its processes reads the whole model, in fp32."""
    return 4 * shape.parameters * processes


def fits(nbytes: int) -> list[int]:
    """Those of the common cards, in GB, that hold so much."""
    return [card for card in CARDS if nbytes <= card * 10**9]
