"""``adapter_config.json`` of PEFT: what of it decides about the merged weights, and what is not supported, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from cpift.checkpoint.files import read_json
from cpift.errors import CpiftError

FILE = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Ways to start the training that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, …) change it.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Keys that change what is computed, beyond base + scale · B·A; each is refused where it is set.
_REFUSED = {
    "layer_replication": "it repeats layers of the base",
    "trainable_token_indices": "it trains single rows of the embedding",
    "target_parameters": "it adapts parameters of experts",
    "use_qalora": "it pools the inputs of a quantised base",
    "alora_invocation_tokens": "it is active behind certain tokens only",
    "arrow_config": "it routes between adapters, token by token",
    "monteclora_config": "its weights are random",
    "kasa_config": "it changes the base",
    "use_bdlora": "its B or A is block-diagonal",
    "megatron_config": "it splits layers of Megatron",
}
# Known keys that decide nothing here.
_PASSED = {
    "auto_mapping",
    "peft_version",
    "task_type",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "bias",
    "layers_to_transform",
    "layers_pattern",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "qalora_group_size",
    "runtime_config",
    "modules_to_save",
    "ensure_weight_tying",
    "megatron_core",
    "init_lora_weights",
    "base_model_name_or_path",
    "revision",
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What decides about the merged weights.

    file: where it was read.
    base: ``base_model_name_or_path``: a folder or a hub id; "" where it is not said.
    revision: of the base on the hub.
    rank: r, where ``ranks`` has no pattern for a module.
    alpha: as ``rank``.
    rank_stabilised: scale α/√r (rsLoRA, arXiv:2312.03732) instead of α/r.
    dora: weights are decomposed into length and direction.
    inputs_first: weights have their inputs as rows (``fan_in_fan_out``).
    """

    file: Path
    base: str
    revision: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    dora: bool
    inputs_first: bool

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Read the file of an adapter's folder.

        Args:
            folder: of the adapter.

        Raises:
            CpiftError: damaged, or a kind of adapter that cannot be merged here.
        """
        file = folder / FILE
        table = read_json(file)
        if not isinstance(table, dict):
            raise CpiftError(f"{file}: is no table")
        _refuse(table, file)

        def value(key: str, kind: type | tuple[type, ...], default: object) -> object:
            given = table.get(key)
            if given is None:
                return default
            if not isinstance(given, kind) or (isinstance(given, bool) and kind is not bool):
                raise CpiftError(f"{file}: {key} is {given!r}, which is no {_name(kind)}")
            return given

        def numbers(key: str, check: Callable[[object], bool]) -> dict[str, float]:
            given = value(key, dict, {})
            assert isinstance(given, dict)
            for pattern, number in given.items():
                if not check(number):
                    raise CpiftError(f"{file}: {key}: {pattern} is {number!r}; a positive number is needed")
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise CpiftError(f"{file}: {key}: {pattern!r} is no pattern ({error})") from None
            return given

        rank = value("r", int, 8)
        if not _positive(rank):
            raise CpiftError(f"{file}: r is {rank}; a rank is at least 1")
        return cls(
            file,
            str(value("base_model_name_or_path", str, "")),
            None if table.get("revision") is None else str(value("revision", str, "")),
            int(str(rank)),
            float(str(value("lora_alpha", (int, float), 8))),
            {key: int(number) for key, number in numbers("rank_pattern", _positive).items()},
            numbers("alpha_pattern", _is_number),
            bool(value("use_rslora", bool, False)),
            bool(value("use_dora", bool, False)),
            bool(value("fan_in_fan_out", bool, False)),
        )

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its name in the adapter's file."""
        return int(_by_pattern(self.ranks, module, self.rank))

    def scale(self, module: str) -> float:
        """The factor of B·A of a module, by its name in the adapter's file."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alphas, module, self.alpha)
        return alpha / sqrt(rank) if self.rank_stabilised else alpha / rank


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The first pattern that a whole end of the name matches, as PEFT has it."""
    return next((n for key, n in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _refuse(table: Mapping[str, object], file: Path) -> None:
    kind = table.get("peft_type")
    if kind != "LORA":
        raise CpiftError(
            f"{file}: peft_type is {kind}, which is not supported (LoRA, rsLoRA and DoRA are); where PEFT can merge it, "
            "do that first: merge_and_unload(), save_pretrained()"
        )
    merge = "; load it with PEFT, call merge_and_unload() and save the result"
    for key, why in _REFUSED.items():
        if table.get(key):
            raise CpiftError(f"{file}: {key} is not supported: {why}{merge}")
    start = table.get("init_lora_weights")
    if isinstance(start, str) and start not in _STARTS:
        raise CpiftError(
            f"{file}: init_lora_weights is {start!r}, which changes the base before training{merge}; or convert it to "
            "a plain LoRA (PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…))"
        )
    unknown = [
        key
        for key, value in table.items()
        if key not in {*_REFUSED, *_PASSED} and (value is True or (value and isinstance(value, dict | list)))
    ]
    if unknown:
        raise CpiftError(f"{file}: {unknown[0]} is newer than this cpift and may change the weights{merge}")


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(kind: type | tuple[type, ...]) -> str:
    names = {int: "whole number", str: "text", bool: "true or false", dict: "table"}
    return names.get(kind, "number") if isinstance(kind, type) else "number"
