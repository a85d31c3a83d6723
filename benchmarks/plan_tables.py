"""Print the tables of docs/plan.md: memory on paper for LLaMA-2 on 1, 8 and 64 GPUs. A test holds the page to this."""

from __future__ import annotations

from cpift.method.identify import core_count
from cpift.planning import memory
from cpift.planning.memory import Shape, Sharding, Step

# hidden, layers, intermediate, heads of keys and values; all have heads of 128 and 32,000 words
MODELS = {"7B": (4096, 32, 11008, 32), "13B": (5120, 40, 13824, 40), "70B": (8192, 80, 28672, 8)}
ROWS, TOKENS, TASKS, PERCENT = 64, 1024, 5, "1"
ROWS_OF_A_TABLE = (
    (1, "–", False), (8, "data parallel", False), (8, "FSDP2", False), (8, "FSDP2, sync_each_batch", True),
    (64, "data parallel", False), (64, "FSDP2", False),
)  # fmt: skip
PARTS = ("weights", "moments", "gradients", "buckets", "unsharded", "frozen", "copies", "activations", "logits")


def llama(hidden: int, layers: int, intermediate: int, kv_heads: int) -> Shape:
    """The shape of a Llama, from the names and sizes of its tensors."""
    kv, layer = 128 * kv_heads, {}
    for i in range(layers):
        for name, size in {
            "self_attn.q_proj": hidden * hidden, "self_attn.k_proj": kv * hidden, "self_attn.v_proj": kv * hidden,
            "self_attn.o_proj": hidden * hidden, "mlp.gate_proj": intermediate * hidden, "mlp.up_proj": intermediate * hidden,
            "mlp.down_proj": intermediate * hidden, "input_layernorm": hidden, "post_attention_layernorm": hidden,
        }.items():  # fmt: skip
            layer[f"model.layers.{i}.{name}.weight"] = size
    ends = {"model.embed_tokens.weight": 32000 * hidden, "model.norm.weight": hidden, "lm_head.weight": 32000 * hidden}
    config = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": hidden // 128, "vocab_size": 32000,
    }  # fmt: skip
    return memory.shape_of({**ends, **layer}, config)


def _step(core: int, gpus: int, checkpointing: bool, synced: bool) -> Step:
    """One row a GPU and pass, as many passes as make the rows of a step."""
    return Step(
        TOKENS, checkpointing=checkpointing, accumulates=gpus < ROWS, synced=synced, frozen=(TASKS - 1) * core
    )  # fmt: skip


def training_table(name: str, shape: Shape) -> list[str]:
    """A row for each number of GPUs and sharding."""
    core = core_count(PERCENT, shape.parameters)
    lines = [
        f"### LLaMA-2-{name}: {shape.parameters:,} parameters",
        "",
        f"| GPUs | sharding | {' | '.join(PARTS)} | **peak** | card | peak without checkpointing |",
        "|" + "---|" * (len(PARTS) + 5),
    ]
    for gpus, label, synced in ROWS_OF_A_TABLE:
        sharding: Sharding = "FSDP2" if label.startswith("FSDP2") else "data parallel"
        part, plain = (
            memory.training(shape, _step(core, gpus, checkpointing, synced), gpus, sharding)
            for checkpointing in (True, False)
        )
        cells = [gb(getattr(part, name)) if getattr(part, name) else "–" for name in PARTS]
        lines.append(
            f"| {gpus} | {label} | {' | '.join(cells)} | **{gb(part.peak)}** | {card(part.peak)} | {gb(plain.peak)} |"
        )
    return [*lines, ""]


def rest_table(shapes: dict[str, Shape]) -> list[str]:
    """What is no training."""
    lines = [
        "### What is no training",
        "",
        "| | scoring, on one GPU | card | identify, main memory | fuse, main memory | loading, main memory, 8 processes | disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, shape in shapes.items():
        core, scoring = core_count(PERCENT, shape.parameters), memory.scoring(shape, TOKENS)
        lines.append(
            f"| {name} | {gb(scoring)} | {card(scoring)} | {gb(memory.identifying(core, TASKS, 8))} | "
            f"{gb(memory.fusing(core, TASKS, 8))} | {gb(memory.loading(shape, 8))} | {gb((3 * TASKS + 1) * 4 * shape.parameters)} |"
        )
    return lines


def gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f}"


def card(nbytes: int) -> str:
    found = memory.fits(nbytes)
    return str(found[0]) if found else "none"


def tables() -> str:
    """All of them, in Markdown; in GB of 10^9 bytes."""
    shapes = {name: llama(*widths) for name, widths in MODELS.items()}
    lines = [line for name, shape in shapes.items() for line in training_table(name, shape)]
    return "\n".join([*lines, *rest_table(shapes)])


if __name__ == "__main__":
    print(tables())
