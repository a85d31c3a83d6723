"""Do two checkpoints' weights mean the same? Their configurations and tokenizers, compared field by field.

Equal shapes do not suffice: with another rope_theta, another number of heads or other token ids the same numbers are
another model. A field that changes what the weights mean is refused, a field of bookkeeping passes, the rest, every
field not known here included, is a warning. docs/checkpoints.md has the outcome of each field.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from cpift.checkpoint.files import read_json
from cpift.checkpoint.library import optional_library, silent
from cpift.checkpoint.stream import Checkpoint
from cpift.checkpoint.tokens import Tokens, chat_template, compare_tokens, rest_of_tokenizer
from cpift.errors import CpiftError

T = TypeVar("T")
Outcome = Literal["same", "warn", "refuse"]

# Bookkeeping, and what only counts before training starts.
_SAME = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "*attn_implementation*",
    "*experts_implementation*",
    "unsloth_*",
    "initializer_range",
    "initializer_factor",
    "rescale_prenorm_residual",
    "problem_type",
    "summary_*",
    "chunk_size_feed_forward",
    "pretraining_tp",
    "_from_model_config",
    "_commit_hash",
)
# What enters the arithmetic between the weights.
_REFUSE = (
    "model_type",
    "*hidden_size*",
    "n_embd",
    "d_model",
    "*intermediate_size*",
    "n_inner",
    "n_layer*",
    "*num_*layers*",
    "*heads*",
    "n_head*",
    "*head_dim*",
    "*rope*",
    "*rotary*",
    "hidden_act*",
    "*activation*",
    "*_eps",
    "*_epsilon",
    "*norm_type",
    "*sliding_window*",
    "layer_types",
    "max_window_layers",
    "tie_*",
    "vocab_size",
    "*experts*",
    "*expert_*",
    "norm_topk_prob",
    "scoring_func",
    "topk_*",
    "n_group",
    "*softcap*",
    "query_pre_attn_scalar",
    "*_multiplier",
    "*scaling*",
    "*scale_*",
    "scale_*",
    "*_bias",
    "*parallel_residual",
    "parallel_attn",
    "is_decoder",
    "is_encoder_decoder",
    "*cross_attention*",
    "*bidirectional*",
    "*qk_norm*",
    "*lora_rank",
    "conv_*",
    "*_conv*",
    "state_size",
    "*time_step*",
    "ssm_*",
    "mamba_*",
    "image_token*",
    "*_token_index",
    "patch_size",
    "image_size",
    "alibi",
    "position_embedding_type",
    "multi_query",
    "new_decoder_architecture",
    "*_layer_dense*",
    "mlp_only_layers",
    "decoder_sparse_step",
    "*_stride",
    "attn_*_factor",
    "*_group_size",
    "full_attn*",
    "no_rope*",
    "hybrid*",
)


@dataclass(frozen=True)
class Difference:
    """A field in which two checkpoints differ, what each of them has there, and what follows."""

    file: str
    field: str
    ours: object
    theirs: object
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.field} is {_short(self.theirs)}, the base has {_short(self.ours)}"


def outcome_of(field: str) -> Outcome:
    """What a difference in a field of config.json leads to; ``text_config.rope_parameters.rope_theta`` is a field."""
    parts = field.split(".")
    for patterns, outcome in ((_SAME, "same"), (_REFUSE, "refuse")):
        if any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in patterns):
            return outcome  # type: ignore[return-value]
    return "warn"


def compare_configs(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[Difference]:
    """The fields in which two configurations differ, once transformers has filled in what they leave out.

    Args:
        ours: the base's ``config.json``.
        theirs: that of a checkpoint made from it, perhaps by another version of transformers.
    """
    if not list(_differences(ours, theirs)):
        return []
    left, right = _filled_in(ours), _filled_in(theirs)
    if left is not None and right is not None:
        return list(_differences(left, right))
    # What only one of the files states may be the other's default, which no one here knows.
    return list(_differences(ours, theirs, unknown_defaults=True))


def check_compatible(base: Checkpoint, models: Mapping[str, Checkpoint], union: bool = False) -> list[str]:
    """Compare each model's configuration and tokenizer with the base's.

    Args:
        base: what all were trained from.
        models: the others, by the name that warnings call them.
        union: may a vocabulary be larger than the base's?

    Returns:
        Warnings: what differs and does not change what the weights mean.

    Raises:
        CpiftError: names the fields or tokens that make the weights mean something else.
    """
    warnings: list[str] = []
    read: dict[str, Tokens] = {}
    origin = _nearest(Tokens.read, base)
    for name, model in models.items():
        if model.path == base.path:
            continue
        differences = compare_configs(base.config, model.config) if base.config and model.config else []
        if union:
            differences = [d for d in differences if d.field.rpartition(".")[2] != "vocab_size"]
        fatal = [d for d in differences if d.outcome == "refuse"]
        if fatal:
            hint = "; for a larger vocabulary: --vocabulary union" if fatal[0].field.endswith("vocab_size") else ""
            raise CpiftError(
                f"{model.path}: config.json does not fit {base.path}: {_listed([str(d) for d in fatal])}; its weights "
                f"mean something else there. Take checkpoints of one base, or mend the file that is wrong{hint}"
            )
        texts = [str(d) for d in differences if d.outcome == "warn"]
        tokens = _nearest(Tokens.read, model)
        if origin is not None and tokens is not None:
            read[name] = tokens
            texts += compare_tokens(origin, tokens, model.path)
            texts += rest_of_tokenizer(origin, tokens)
            if _nearest(chat_template, base) != _nearest(chat_template, model):
                texts.append("its chat template is another")
        texts += _generation(base.folders[-1], model.folders[-1])
        if texts:
            warnings.append(f"{name} differs from the base: {_listed(texts, 8)}")
    _refuse_rows_of_two_tokens(origin, read)
    return warnings


def _refuse_rows_of_two_tokens(origin: Tokens | None, models: Mapping[str, Tokens]) -> None:
    """Two models that gave one row of the embedding to tokens of their own cannot both have it."""
    owner: dict[int, tuple[str, str]] = {}
    for name, tokens in models.items():
        if origin is not None and tokens.by_id is origin.by_id:
            continue
        for row, token in tokens.by_id.items():
            if origin is not None and origin.by_id.get(row) == token:
                continue
            other, theirs = owner.setdefault(row, (name, token))
            if theirs != token:
                raise CpiftError(
                    f"{other} and {name} both added a token in row {row} of the embedding: {theirs!r} and {token!r}; "
                    "one row cannot be both. Train them with one tokenizer that holds both tokens"
                )


def _generation(ours: Path, theirs: Path) -> list[str]:
    files = [folder / "generation_config.json" for folder in (ours, theirs)]
    if not all(file.is_file() for file in files):
        return []
    left, right = (read_json(file) for file in files)
    differences = _differences(left, right, file="generation_config.json")
    return [f"generation_config.json: {d}" for d in differences if outcome_of(d.field) != "same"]


def _differences(
    ours: Mapping[str, object],
    theirs: Mapping[str, object],
    start: str = "",
    file: str = "config.json",
    unknown_defaults: bool = False,
) -> Iterator[Difference]:
    for key in sorted({*ours, *theirs}):
        field, left, right = start + key, ours.get(key), theirs.get(key)
        if outcome_of(field) == "same" or left == right:
            continue
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(left, right, f"{field}.", file, unknown_defaults)
        else:
            open_question = unknown_defaults and not (key in ours and key in theirs)
            yield Difference(file, field, left, right, "warn" if open_question else outcome_of(field))


def _filled_in(config: Mapping[str, object]) -> dict[str, object] | None:
    """The configuration with the defaults of its class, in today's spelling; None where transformers cannot tell."""
    kind = config.get("model_type")
    transformers = optional_library("transformers")
    if transformers is None or kind not in transformers.CONFIG_MAPPING:
        return None
    try:
        with silent():
            made: dict[str, object] = transformers.CONFIG_MAPPING[kind].from_dict(dict(config)).to_dict()
    except Exception:  # values that transformers refuses: the files are compared as they are
        return None
    return made


def _nearest(read: Callable[[Path], T | None], model: Checkpoint) -> T | None:
    """What an adapter's own folder has, or else its base's."""
    return next((value for folder in reversed(model.folders) if (value := read(folder)) is not None), None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _listed(texts: list[str], most: int = 4) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
