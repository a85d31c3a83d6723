"""Merges in mergekit's YAML, read as arguments of ``fuse`` where the two mean the same.

Both give Σ cⱼ·θⱼ for ``linear`` and ``task_arithmetic``. For ``slerp`` mergekit takes the straight line where two tensors
are nearly parallel (a cosine above 0.9995) and ``fuse`` the arc: shares differ by less than θ²/6 there, 1.7e-4. Whatever
else differs is refused, with what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cpift.errors import CpiftError
from cpift.method.fusion.options import WeightOfTasks

_KNOWN = ("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
_METHODS = {
    "linear": ("weight", "normalize"),
    "task_arithmetic": ("weight", "normalize", "lambda", "int8_mask"),
    "slerp": ("t",),
}


@dataclass(frozen=True)
class Merge:
    """Arguments of :func:`cpift.method.fuse.fuse`.

    Attributes:
        base: θ⁰, a folder or a hub id.
        tuned: θᵢ by a name made from its path; adapters are on ``base``.
        interpolation: a name of the table.
        weight: as ``fuse`` takes it.
        dtype: of the output; None: the widest.
    """

    base: str
    tuned: dict[str, str]
    interpolation: str
    weight: WeightOfTasks
    dtype: str | None


@dataclass(frozen=True)
class _Source:
    model: str
    adapter: str | None
    parameters: Mapping[str, object]
    layers: tuple[int, int] | None = None


def read_merge(file: Path) -> Merge:
    """A merge as ``fuse`` does it.

    Args:
        file: mergekit's YAML, with ``merge_method`` linear, slerp or task_arithmetic.

    Raises:
        CpiftError: no such file, no such merge, or one that ``fuse`` would do otherwise; says what and what to do.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CpiftError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(data, dict) or "merge_method" not in data:
        raise CpiftError(f"{file}: is no merge of mergekit; it has no merge_method")
    return _Reader(file, data).merge()


class _Reader:
    """One file; what cannot be done raises :class:`CpiftError` that names the file and the key."""

    def __init__(self, file: Path, data: Mapping[str, Any]) -> None:
        self._file, self._data, self._method = file, data, str(data["merge_method"])

    def merge(self) -> Merge:
        if self._method not in _METHODS:
            why = {
                "ties": "drops small updates and elects a sign for each element, and fuse sums whole updates",
                "dare_ties": "drops updates at random", "dare_linear": "drops updates at random",
            }.get(self._method, f"fuse reads {', '.join(_METHODS)}")  # fmt: skip
            raise self._refusal("merge_method", f"{self._method}: {why}; use mergekit-yaml")
        for key in self._data:
            if key not in _KNOWN:
                raise self._refusal(key, "fuse has nothing like it; leave it out, or use mergekit-yaml")
        if (self._data.get("tokenizer_source") or "base") != "base":
            raise self._refusal("tokenizer_source", "leave it out, and give fuse --vocabulary union for added tokens")
        sources = self._sources()
        base, used, weight = self._merged(sources)
        if not used:
            raise self._refusal("models", "a merge needs two models at least")
        tuned = dict(zip(_names(used), (source.adapter or source.model for source in used), strict=True))
        weights: WeightOfTasks = dict(zip(tuned, weight, strict=True)) if isinstance(weight, list) else weight
        interpolation = {"linear": "linear", "task_arithmetic": "sum", "slerp": "slerp"}[self._method]
        return Merge(base, tuned, interpolation, weights, self._dtype())

    def _merged(self, sources: Sequence[_Source]) -> tuple[str, list[_Source], list[float] | float]:
        if self._method == "linear":
            return self._linear(sources)
        return self._slerp(sources) if self._method == "slerp" else self._arithmetic(sources)

    def _sources(self) -> list[_Source]:
        listed: object = self._data.get("models")
        if listed is None:
            slices = self._data.get("slices")
            if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], dict):
                raise self._refusal("slices", "fuse takes whole models: one slice with all layers, or models")
            if odd := set(slices[0]) - {"sources"}:
                raise self._refusal(f"slices.{sorted(odd)[0]}", "give it beside the slices")
            listed = slices[0].get("sources")
        if not isinstance(listed, list) or not listed or not all(isinstance(m, dict) and "model" in m for m in listed):
            raise self._refusal("models", "must be a list of records with a model each")
        sources = []
        for entry in listed:
            if odd := set(entry) - {"model", "parameters", "layer_range"}:
                raise self._refusal(f"models.{sorted(odd)[0]}", "fuse has nothing like it")
            model, adapter = self._model(entry["model"], "models.model")
            layers = tuple(entry["layer_range"]) if "layer_range" in entry else None
            sources.append(_Source(model, adapter, entry.get("parameters") or {}, layers))
        self._check_layers(sources)
        return sources

    def _check_layers(self, sources: Sequence[_Source]) -> None:
        """A slice must be the whole model: as many layers as a local configuration has."""
        for source in sources:
            if source.layers is None:
                continue
            config = Path(source.model) / "config.json"
            layers = yaml.safe_load(config.read_text()).get("num_hidden_layers") if config.is_file() else None
            if source.layers != (0, layers):
                known = f"which has {layers} layers" if layers else "whose config.json is not here to be counted"
                raise self._refusal("slices", f"{list(source.layers)} of {source.model}, {known}; write models")

    def _model(self, given: object, key: str) -> tuple[str, str | None]:
        """A model and its adapter: ``model+adapter``, or mergekit's record of the two."""
        if isinstance(given, dict) and not set(given) - {"model", "lora"}:
            parts = [given.get("model"), *([given["lora"]] if given.get("lora") else [])]
        else:
            parts = str(given).split("+") if isinstance(given, str) and not Path(given).exists() else [given]
        texts = [self._path(part, key) for part in parts]
        if len(texts) > 2:
            raise self._refusal(key, f"{given}: fuse takes one adapter on a model")
        return texts[0], texts[1] if len(texts) == 2 else None

    def _path(self, given: object, key: str) -> str:
        if isinstance(given, dict) and isinstance(given.get("path"), str) and not set(given) - {"path", "revision"}:
            return f"{given['path']}@{given['revision']}" if given.get("revision") else str(given["path"])
        if isinstance(given, str) and given:
            return given
        raise self._refusal(key, f"{given!r} is no model; write a folder, a hub id, or model+adapter")

    def _linear(self, sources: Sequence[_Source]) -> tuple[str, list[_Source], list[float]]:
        weights = [self._number("weight", source) for source in sources]
        total = sum(weights)
        if self._flag("normalize", True):
            if not total:
                raise self._refusal("weight", "the weights sum to 0")
            weights = [weight / total for weight in weights]
        elif not math.isclose(total, 1.0, abs_tol=1e-9):
            raise self._refusal("normalize", f"false, and the weights sum to {total:g}; fuse keeps the sum at 1")
        origins = {source.model for source in sources if source.adapter}
        if not origins:
            return sources[0].model, list(sources[1:]), weights[1:]
        base = self._one_origin(origins)
        rest = [(source, weight) for source, weight in zip(sources, weights, strict=True)]
        plain = [pair for pair in rest if pair[0].model == base and not pair[0].adapter]  # the base has what is left
        used = [pair for pair in rest if pair not in plain]
        return base, [source for source, _ in used], [weight for _, weight in used]

    def _arithmetic(self, sources: Sequence[_Source]) -> tuple[str, list[_Source], list[float]]:
        base = self._base()
        used = [source for source in sources if (source.model, source.adapter) != (base, None)]
        weights = [self._number("weight", source) for source in used]
        if self._flag("normalize", False):
            total = sum(weights)
            weights = [weight / total if abs(total) >= 1e-8 else weight for weight in weights]
        scale = self._number("lambda", _Source("", None, {}), 1.0)
        self._one_origin({source.model for source in used if source.adapter} | {base})
        return base, used, [scale * weight for weight in weights]

    def _slerp(self, sources: Sequence[_Source]) -> tuple[str, list[_Source], float]:
        base = self._base()
        used = [source for source in sources if (source.model, source.adapter) != (base, None)]
        if len(used) != 1 or len(sources) > 2:
            raise self._refusal("models", "slerp is between base_model and one other model")
        self._one_origin({source.model for source in used if source.adapter} | {base})
        share = self._number("t", _Source("", None, {}))
        if not 0 <= share <= 1:
            raise self._refusal("t", f"{share:g} is not in 0 … 1")
        return base, used, share

    def _base(self) -> str:
        if self._data.get("base_model") is None:
            raise self._refusal("base_model", f"is missing; {self._method} needs it")
        base, adapter = self._model(self._data["base_model"], "base_model")
        if adapter:
            raise self._refusal(
                "base_model", "has an adapter; merge it first: cpift export ADAPTER --base BASE --out DIR"
            )
        return base

    def _one_origin(self, origins: set[str]) -> str:
        if len(origins) > 1:
            named = ", ".join(sorted(origins))
            raise self._refusal(
                "models", f"adapters must be on the base, and these are on others ({named}); merge them by cpift export"
            )
        return next(iter(origins))

    def _number(self, key: str, source: _Source, default: float | None = None) -> float:
        """A parameter that is one number, of the model or of the file."""
        known = _METHODS[self._method]
        own = self._data.get("parameters") or {}
        for given in (source.parameters, own):
            if odd := [name for name in given if name not in known]:
                raise self._refusal(f"parameters.{odd[0]}", f"{self._method} of fuse has no such parameter")
        value = source.parameters.get(key, own.get(key, default))
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and set(value[0]) == {"value"}:
            value = value[0]["value"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            what = "is missing" if value is None else f"{value!r} differs by layer or tensor, and fuse takes one number"
            raise self._refusal(f"parameters.{key}", what)
        return float(value)

    def _flag(self, key: str, default: bool) -> bool:
        value = (self._data.get("parameters") or {}).get(key, default)
        if not isinstance(value, bool | int):
            raise self._refusal(f"parameters.{key}", f"{value!r} is neither true nor false")
        return bool(value)

    def _dtype(self) -> str | None:
        value = self._data.get("out_dtype") or self._data.get("dtype")
        if value is not None and value not in ("float32", "bfloat16", "float16"):
            raise self._refusal("dtype", f"{value} is not one of float32, bfloat16, float16")
        return value

    def _refusal(self, key: str, what: str) -> CpiftError:
        return CpiftError(f"{self._file}: {key}: {what}")


def _names(sources: Sequence[_Source]) -> list[str]:
    """A name for each model: the last part of its path, with a number where two have the same."""
    names: list[str] = []
    for source in sources:
        stem = Path((source.adapter or source.model).partition("@")[0]).name or "model"
        number = sum(name == stem or name.startswith(f"{stem}-") for name in names)
        names.append(f"{stem}-{number + 1}" if number else stem)
    return names
