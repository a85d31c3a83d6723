"""Orthogonal subspace fine-tuning by PEFT (OSF, arXiv:2504.07097): each matrix's main singular directions stay.

W = U_high S_high V_highᵀ + U_low S_low V_lowᵀ. The first part is frozen; the second is trained, its gradients projected to
stay orthogonal to the first. All other parameters, embeddings and norms among them, are frozen.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

from cpift.checkpoint.library import library
from cpift.errors import CpiftError
from cpift.extras import install
from cpift.train.models import is_sharded


def check_osf(where: str) -> None:
    """Raise :class:`CpiftError` where PEFT, or its OSF, is missing.

    Args:
        where: what asks for it, for the message.
    """
    if find_spec("peft") is None:
        raise CpiftError(f"{where}: OSF needs PEFT; {install('adapters')}")
    if not hasattr(library("peft"), "OSFConfig"):
        raise CpiftError(f"{where}: this PEFT has no OSF; pip install -U peft")


def with_osf(model: Any, share: float) -> Any:
    """The model with PEFT's OSF layers, which alone are trained; on the modules that PEFT takes for its architecture.

    Args:
        model: whole, float32.
        share: of each matrix's singular directions, the largest first, that stays as it is; 0 < share < 1.

    Raises:
        CpiftError: PEFT is missing or refuses the model, or none of its layers is of a kind that OSF knows.
    """
    check_osf("arrivals.osf")
    peft = library("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = peft.get_peft_model(model, peft.OSFConfig(task_type="CAUSAL_LM", effective_rank=share))
        except (ValueError, ImportError, RuntimeError) as error:
            raise CpiftError(f"arrivals.osf: PEFT refuses it ({' '.join(str(error).split())[:300]})") from error
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise CpiftError("arrivals.osf: the model has no linear layer of a kind that PEFT's OSF trains")
    return made


def without_osf(model: Any) -> Any:
    """The plain model, its matrices with what was trained.

    Args:
        model: what :func:`with_osf` made.

    Raises:
        CpiftError: its weights are sharded.
    """
    if is_sharded(model):
        raise CpiftError("arrivals.osf: is not trained sharded; leave FSDP or DeepSpeed out")
    return model.merge_and_unload()
