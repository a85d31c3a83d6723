"""What a training is made of: the settings of a stage that trains, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cpift.data.mixture import Mix
from cpift.data.templates import ChatSettings
from cpift.recipe.adapter import Adapter
from cpift.recipe.model import Dtype
from cpift.train.averaging import Averaging


@dataclass(frozen=True)
class TrainSpec:
    """The settings of one training.

    Attributes:
        training: fields of SFTConfig, on top of :data:`cpift.train.config.DEFAULTS`.
        steps: optimizer steps; rows are shuffled anew each epoch.
        seed: of the order of rows, of drawn rows and of dropout.
        tasks: whose rows are trained on.
        examples: rows drawn of each task, by seed; None: all.
        draw: which such sample, from 1.
        frozen: stages whose regions stay bit-identical.
        inside: stages whose regions alone are trained; none: all that is not frozen.
        replay: rows to mix in from each earlier task. Replayed rows are repeated until they make up about half of the rows.
        replay_share: share of all rows that are replayed ones, exactly; None: the nearest whole number of repetitions.
        mix: what share each of several tasks gets (:mod:`cpift.data.mixture`).
        anchor: factor of the divergence from the model before, on the prompts (:mod:`cpift.train.anchor`); 0: none.
        ewc: strength of the pull towards the model before, by what matters for kept rows (:mod:`cpift.train.elastic`); 0: none.
        kept: number of kept rows of each task by which that is measured.
        average: averages with the model before while training (:mod:`cpift.train.average`); None: none.
        unaveraged: stages whose regions are left out of these averages; frozen ones are in any case.
        trainable: shell-style pattern of the only parameters that are trained, such as "*.bias"; None: all.
        chat: the recipe's chat template and end token, saved with the model.
        trust_remote_code: may the checkpoint bring code of its own?
        adapter: train this in place of all parameters; None: all parameters.
        osf: share of each matrix's singular directions that stays in orthogonal subspace fine-tuning
            (:mod:`cpift.train.orthogonal`); None: all parameters are trained.
        attention: transformers' name of how attention is computed; None: its choice.
        dtype: of the weights in training.
        updates: keep the update alone, in bf16, in place of whole weights.
        device_map: how transformers spreads the layers over several devices; None: one device.
        merge: save whole weights, the adapter merged, frozen positions as they were; False: the adapter alone.
    """

    training: Mapping[str, Any]
    steps: int
    seed: int
    tasks: tuple[str, ...] = ()
    examples: int | None = None
    draw: int = 1
    frozen: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    replay: Mapping[str, int] = field(default_factory=dict)
    mix: Mix = "rows"
    replay_share: float | None = None
    anchor: float = 0.0
    ewc: float = 0.0
    kept: Mapping[str, int] = field(default_factory=dict)
    average: Averaging | None = None
    unaveraged: tuple[str, ...] = ()
    trainable: str | None = None
    chat: ChatSettings = field(default_factory=ChatSettings)
    trust_remote_code: bool = False
    adapter: Adapter | None = None
    merge: bool = False
    osf: float | None = None
    attention: str | None = None
    dtype: Dtype = "float32"
    updates: bool = False
    device_map: str | None = None
