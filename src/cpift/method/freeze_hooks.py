"""When an optimizer changes weights: in ``step``, in that of one it wraps, or as it switches between two sets of weights.

Schedule-free optimizers keep two sets of weights, for training and for use, and swap them in ``train()`` and ``eval()``.
Lookahead and its like wrap another optimizer and move the weights once more after its step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# Attributes under which an optimizer holds the one that it wraps.
_INNER = ("optimizer", "base_optimizer", "base", "_optimizer", "inner_optimizer")
# Methods beside step that put other weights in place: of schedule-free optimizers, of torchcontrib's SWA, of lookahead.
_SWAPS = ("train", "eval", "swap_swa_sgd", "sync_lookahead", "backup_and_load_cache", "clear_and_load_backup")


@contextmanager
def after_changes(optimizer: object, call: Callable[..., None]) -> Iterator[None]:
    """Call ``call`` each time after ``optimizer``, or one that it wraps, has changed the weights."""
    with ExitStack() as stack:
        for one in chain(optimizer):
            if _has_step_hooks(one):
                handle = one.register_step_post_hook(call)
                stack.callback(handle.remove)
            elif not _only_passes_on(one):
                stack.enter_context(_wrapped(one, "step", call))
            for name in _SWAPS:
                if callable(getattr(one, name, None)) and not _only_passes_on(one):
                    stack.enter_context(_wrapped(one, name, call))
        yield


def chain(optimizer: object) -> list[Any]:
    """The optimizer, the one that it wraps, and so on."""
    optimizers: list[Any] = []
    while optimizer is not None and not any(optimizer is one for one in optimizers) and hasattr(optimizer, "step"):
        optimizers.append(optimizer)
        held = (getattr(optimizer, name, None) for name in _INNER)
        optimizer = next((one for one in held if callable(getattr(one, "step", None))), None)
    return optimizers


def _has_step_hooks(optimizer: Any) -> bool:
    """Does its step call hooks? Not where a wrapper is a torch optimizer by name only, and never made as one."""
    hooked = getattr(type(optimizer).step, "hooked", False) if hasattr(type(optimizer), "step") else False
    return (
        bool(hooked)
        and isinstance(optimizer, torch.optim.Optimizer)
        and "_optimizer_step_post_hooks" in vars(optimizer)
    )


def _only_passes_on(optimizer: object) -> bool:
    """Accelerate's wrapper changes no weights itself, and swaps its own step now and then."""
    return type(optimizer).__module__.partition(".")[0] == "accelerate"


@contextmanager
def _wrapped(owner: object, name: str, call: Callable[..., None]) -> Iterator[None]:
    """Within the context, ``owner.name(…)`` is followed by ``call()``."""
    method, own = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(method)
    def then(*arguments: object, **options: object) -> Any:
        result = method(*arguments, **options)
        call()
        return result

    setattr(owner, name, then)
    try:
        yield
    finally:
        if vars(owner).get(name) is then:
            delattr(owner, name)
            if own is not None:
                setattr(owner, name, own)
