"""Which files of a folder hold the weights: the choice that transformers makes, so that all readers agree.

What is no plain checkpoint (an adapter, a sharded training state, GGUF, pickle) is refused with the command that
makes one of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cpift.checkpoint.safetensors import StoredTensor, read_header
from cpift.errors import CpiftError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_JSON_LIMIT = 64 * 2**20


def read_json(path: Path) -> Any:
    """A JSON file. Raises :class:`CpiftError` where it is too large for one, or damaged."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise CpiftError(f"{path}: is too large ({path.stat().st_size / 1e9:.1f} GB) to be what its name says")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CpiftError(f"{path}: cannot be read as JSON ({error})") from error


def read_folder(
    folder: Path, config: Mapping[str, object], dispensable: Callable[[str], bool]
) -> dict[str, StoredTensor]:
    """Headers of all weights in a folder.

    Args:
        folder: of a Hugging Face checkpoint.
        config: what its ``config.json`` holds.
        dispensable: may the index list a tensor of this name although no shard holds it?

    Raises:
        CpiftError: no safetensors weights here, a missing shard, an index that leads out of the folder.
    """
    _refuse_adapter(folder)
    named = config.get("transformers_weights")  # a file of another name, given by the configuration
    if isinstance(named, str):
        if named.endswith(".index.json"):
            return _read_shards(folder, named, dispensable)
        return read_header(_inside(folder, named, folder / "config.json"))
    if any(re.match(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", name) for name in os.listdir(folder)):
        raise CpiftError(
            f"{folder}: is a distributed checkpoint of transformers; write it whole first: {_resave(folder)}"
        )
    if (folder / SINGLE).is_file():  # as transformers has it: an index beside it is not looked at
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _read_shards(folder, INDEX, dispensable)
    raise CpiftError(_what_else(folder))


def _inside(folder: Path, name: str, origin: Path) -> Path:
    if Path(name).name != name or name in ("", ".", ".."):
        raise CpiftError(f"{origin}: names {name!r}, which leads out of the folder")
    if not os.path.isfile(folder / name):  # this one takes names of any length
        raise CpiftError(f"{folder / name}: this shard is missing; fetch the checkpoint again")
    return folder / name


def _read_shards(folder: Path, index_name: str, dispensable: Callable[[str], bool]) -> dict[str, StoredTensor]:
    """All tensors of all files that the index names; where in these they lie, the files know best."""
    index = read_json(folder / index_name)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CpiftError(f"{folder / index_name}: has no usable weight_map")
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_header(_inside(folder, shard, folder / index_name)).items():
            if name in stored:
                raise CpiftError(f"{folder / shard}: tensor {name} also stands in {stored[name].file.name}")
            stored[name] = tensor
    missing = sorted(name for name in set(weight_map) - set(stored) if not dispensable(name))
    if missing:
        raise CpiftError(f"{folder / weight_map[missing[0]]}: lacks {missing[0]}, which the index promises")
    return stored


def _refuse_adapter(folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        return
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        command = f"cpift export {shlex.quote(str(folder))} --out merged"
        raise CpiftError(f"{folder}: is a PEFT adapter where a whole model is needed; merge it first: {command}")
    raise CpiftError(
        f"{folder}: holds an adapter (adapter_config.json) beside the weights of a whole model, so it is open which "
        f"of the two is meant; for the model with the adapter: {_merge(folder)}; for the model alone, remove "
        "adapter_config.json"
    )


def _merge(folder: Path) -> str:
    return (
        'python -c "from peft import AutoPeftModelForCausalLM as A; '
        f"A.from_pretrained('{folder}', dtype='float32').merge_and_unload().save_pretrained('merged')\""
    )


def _resave(folder: Path, more: str = "") -> str:
    return (
        'python -c "from transformers import AutoModelForCausalLM as A; '
        f"A.from_pretrained('{folder}', dtype='auto'{more}).save_pretrained('whole')\""
    )


def zero_command(folder: Path) -> str:
    """The command that makes a plain checkpoint of a folder that DeepSpeed saved."""
    if not (folder / "zero_to_fp32.py").is_file() and (folder.parent / "zero_to_fp32.py").is_file():
        folder = folder.parent
    place = shlex.quote(str(folder))
    return f"python {shlex.quote(str(folder / 'zero_to_fp32.py'))} {place} whole --safe_serialization"


def _what_else(folder: Path) -> str:
    """What a folder without safetensors weights is, and what makes a checkpoint of it."""
    names = sorted(os.listdir(folder))
    files = [name for name in names if (folder / name).is_file()]
    steps = {int(name.rpartition("-")[2]): name for name in names if re.fullmatch(r"checkpoint-\d+", name)}
    if (
        any(name.startswith("global_step") for name in names)
        or "zero_to_fp32.py" in names
        or any(name.endswith("_optim_states.pt") for name in names)
    ):
        return (
            f"{folder}: is a training state of DeepSpeed; write its weights as a checkpoint first: "
            f"{zero_command(folder)}; then copy config.json and the tokenizer's files beside them"
        )
    sharded = [name for name in names if re.fullmatch(r"pytorch_model_fsdp_\d+", name) and name not in files]
    if sharded or any(name.endswith(".distcp") for name in names):
        source = folder / sharded[0] if sharded else folder
        return (
            f"{folder}: is a training state of FSDP, in shards; write its weights as a checkpoint first: accelerate "
            f"merge-weights {shlex.quote(str(source))} whole; then copy config.json and the tokenizer's files beside them"
        )
    if steps:
        return f"{folder}: holds a Trainer's checkpoints only; give the newest of them, {folder / steps[max(steps)]}"
    variants = [
        name for name in files if re.fullmatch(r"model\.(?!safetensors)[^.]+\.safetensors(\.index\.json)?", name)
    ]
    if variants:
        variant = variants[0].split(".")[1]
        return (
            f"{folder}: holds the variant {variants[0]} only, which is loaded by its name alone; write it as a plain "
            f"checkpoint first: {_resave(folder, f', variant={variant!r}')}"
        )
    original = [name for name in names if re.fullmatch(r"consolidated.*\.(safetensors|pth)|params\.json", name)]
    if original:
        return (
            f"{folder}: {original[0]} is the original format of Llama and Mistral; take the repository's {SINGLE} or "
            "its shards, or convert it with transformers' convert_mistral_weights_to_hf.py or "
            "convert_llama_weights_to_hf.py"
        )
    gguf = [name for name in files if name.endswith(".gguf")]
    if gguf:
        return gguf_message(folder / gguf[0])
    pickles = [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return (
            f"{folder}: {pickles[0]} is a pickle, which can run code; save it again as safetensors: "
            f"{_resave(folder, ', use_safetensors=False')}"
        )
    other = [name for name in files if name.endswith(".safetensors")]
    return f"{folder}: holds neither {SINGLE} nor {INDEX}" + (
        f"; {other[0]} is loaded by no one under this name" if other else ""
    )


def gguf_message(file: Path) -> str:
    """What to do with a GGUF file where a plain checkpoint is needed."""
    return (
        f"{file}: is a GGUF file; a recipe's model may be one, here write it as a plain checkpoint first: "
        'python -c "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T; '
        f"g = dict(gguf_file='{file.name}'); A.from_pretrained('{file.parent}', **g).save_pretrained('whole'); "
        f"T.from_pretrained('{file.parent}', **g).save_pretrained('whole')\""
    )
