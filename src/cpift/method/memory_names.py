"""Names on disk and names in memory: which parameter, and which positions of it, a tensor of a checkpoint becomes.

transformers renames tensors as it loads them, and stacks those of experts into one parameter; it undoes this as it
saves. A region has the names and positions of the files. They are taken to memory by transformers' own conversion: it is
run on tensors that hold positions in place of weights. Models that are not transformers' have the same names in both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cpift.checkpoint.library import library
from cpift.checkpoint.names import plain_name
from cpift.errors import CpiftError
from cpift.method.region import Region, merged
from cpift.typing import Network

Shape = tuple[int, ...]


def resolve(name: str, known: Iterable[str], prefixes: Iterable[str]) -> str | None:
    """The known name that a name means, a prefix added or removed; None where there is none, or more than one.

    Args:
        name: to look up.
        known: the names to choose from.
        prefixes: that may be added or removed, see :func:`prefixes_of`.
    """
    known = known if isinstance(known, Mapping | set | frozenset) else set(known)
    if name in known:
        return name
    meant = {start + name for start in prefixes} | {name.removeprefix(start) for start in prefixes}
    candidates = [other for other in meant if other in known]
    return candidates[0] if len(candidates) == 1 else None


def prefixes_of(model: object, *names: Iterable[str]) -> set[str]:
    """The first parts of names, and the prefix that the model's class gives to its base model."""
    own = getattr(model, "base_model_prefix", "") or ""
    return {own + "."} | {name[: name.index(".") + 1] for some in names for name in some if "." in name}


@dataclass(frozen=True)
class DiskNames:
    """How a model of transformers is named once it is saved.

    Attributes:
        network: the model.
        same: name on disk to name in memory, where a tensor is only renamed, or not even that.
        moved: name on disk to the names in memory of the group whose elements it is made of.
        shapes: of each name on disk.
        memory: shape of each name in memory.
    """

    network: Network
    same: Mapping[str, str]
    moved: Mapping[str, tuple[str, ...]]
    shapes: Mapping[str, Shape]
    memory: Mapping[str, Shape]

    def in_memory(self, on_disk: str) -> tuple[str, ...]:
        """Names in memory of what a name on disk is made of."""
        return (self.same[on_disk],) if on_disk in self.same else self.moved[on_disk]

    def positions(self, group: tuple[str, ...], wanted: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
        """Positions within tensors on disk, all of one group, to positions within the parameters of that group.

        Memory: 8 bytes an element of the group (4 below 2**31), and what the conversion takes to move them.
        """
        sizes = [int(np.prod(self.memory[name], dtype=np.int64)) for name in group]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        kind = torch.int32 if starts[-1] < 2**31 else torch.int64
        numbered = {
            name: torch.arange(int(first), int(first) + size, dtype=kind).view(self.memory[name])
            for name, first, size in zip(group, starts, sizes, strict=False)
        }
        on_disk = _as_saved(self.network, numbered)
        by_parameter: dict[str, list[np.ndarray]] = {}
        for name, positions in wanted.items():
            numbers = on_disk[name].reshape(-1)[torch.as_tensor(np.asarray(positions, np.int64))].numpy()
            numbers = np.sort(numbers.astype(np.int64))
            edges = np.searchsorted(numbers, starts)
            for i, parameter in enumerate(group):
                if edges[i] < edges[i + 1]:
                    by_parameter.setdefault(parameter, []).append(numbers[edges[i] : edges[i + 1]] - starts[i])
        return by_parameter


def disk_names(model: nn.Module) -> DiskNames | None:
    """How the model of transformers within ``model`` is named on disk; None where there is no such model.

    Raises:
        CpiftError: transformers cannot undo its own conversion.
    """
    network = _of_transformers(model)
    if network is None:
        return None
    memory = {plain_name(name): _shape(tensor) for name, tensor in _stored(network)}
    empty = {name: torch.empty(shape, device="meta") for name, shape in memory.items()}
    origin = {id(tensor): name for name, tensor in empty.items()}
    saved = _as_saved(network, empty)
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    same = {name: origin[id(tensor)] for name, tensor in saved.items() if id(tensor) in origin}
    kept = set(same.values())
    changed = {name: tensor for name, tensor in empty.items() if name not in kept}
    return DiskNames(network, same, _groups(network, changed, set(saved) - set(same)), shapes, memory)


def region_in_memory(model: nn.Module, region: Region) -> Region:
    """The region under the names and positions of the model's parameters.

    A name that is not one of the files' is left as it is: regions of a model's own names are taken as they are.

    Raises:
        CpiftError: a tensor of the region has another shape than the model's on disk.
    """
    names = disk_names(model)
    if names is None or (not names.moved and all(here == there for here, there in names.same.items())):
        return region
    prefixes = prefixes_of(names.network, names.shapes, region.positions)
    positions: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, Shape] = {}
    groups: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for name, wanted in region.positions.items():
        on_disk = resolve(name, names.shapes, prefixes)
        if on_disk is None or (on_disk != name and name in names.memory):
            positions.setdefault(name, []).append(np.asarray(wanted))
            if name in region.shapes:
                shapes[name] = region.shapes[name]
            continue
        check_shape(name, region.shapes.get(name), names.shapes[on_disk], int(wanted[-1]))
        if on_disk in names.same:
            positions.setdefault(names.same[on_disk], []).append(np.asarray(wanted))
        else:
            groups.setdefault(names.moved[on_disk], {})[on_disk] = np.asarray(wanted)
    for group, parts in groups.items():
        for parameter, numbers in names.positions(group, parts).items():
            positions.setdefault(parameter, []).extend(numbers)
    shapes |= {name: names.memory[name] for name in positions if name in names.memory}
    joined = {name: merged([np.asarray(part, np.int64) for part in parts]) for name, parts in positions.items()}
    if sum(map(len, joined.values())) != region.count:
        raise CpiftError("freeze: two names of the region stand for one tensor of the model")
    return replace(region, positions=joined, shapes=shapes, negative=None)


def _of_transformers(model: nn.Module) -> Any:
    """The outermost model of transformers; None where there is none. Where there is one, its library is imported."""
    library = sys.modules.get("transformers.modeling_utils")
    kind = getattr(library, "PreTrainedModel", None)
    if kind is None:
        return None
    return next((module for module in model.modules() if isinstance(module, kind)), None)


def _stored(network: Network) -> list[tuple[str, object]]:
    """Parameters (a tied one once) and the buffers that are saved, without their values."""
    tensors = dict(network.named_parameters())
    unsaved = {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        for name in module._non_persistent_buffers_set
    }
    return [*tensors.items(), *((n, b) for n, b in network.named_buffers() if n not in unsaved)]


def _shape(tensor: Any) -> Shape:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))  # ZeRO 3 leaves it empty between uses


def _as_saved(network: Network, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What save_pretrained would write for these tensors."""
    try:
        conversion = library("transformers.core_model_loading")
    except ImportError:  # transformers 4 saves what it holds, under the same names
        return dict(tensors)
    try:
        saved: dict[str, torch.Tensor] = conversion.revert_weight_conversion(network, dict(tensors))
    except Exception as error:
        raise CpiftError(
            f"{type(network).__name__}: transformers cannot undo the conversion of its weights ({error})"
        ) from error
    return saved


def _groups(network: Network, changed: dict[str, torch.Tensor], on_disk: set[str]) -> dict[str, tuple[str, ...]]:
    """For each name on disk that is no plain copy: the parameters that are converted together with it."""
    if not on_disk:
        return {}
    of_name: dict[str, set[str]] = {}  # name on disk to its group, one set shared by all of the group
    for name, tensor in changed.items():
        try:
            made = _as_saved(network, {name: tensor})
        except CpiftError:  # makes no sense alone
            return dict.fromkeys(on_disk, tuple(changed))
        group = {name}.union(*(of_name.get(other, set()) for other in made))
        for other in {*made, *(other for other, held in of_name.items() if held & group)}:
            of_name[other] = group
    if not on_disk <= of_name.keys():
        return dict.fromkeys(on_disk, tuple(changed))
    order = {name: i for i, name in enumerate(changed)}
    return {name: tuple(sorted(of_name[name], key=order.__getitem__)) for name in on_disk}


def check_shape(name: str, given: Shape | None, own: Shape, last: int, where: str = "freeze") -> None:
    """Check a region's tensor against the model's.

    Args:
        name: of the tensor.
        given: its shape in the region; None if unknown.
        own: its shape as the model saves it.
        last: its last position in the region.
        where: the beginning of the message.

    Raises:
        CpiftError: the shapes differ, or the position lies beyond the tensor.
    """
    size = int(np.prod(own, dtype=np.int64))
    if (given is not None and tuple(given) != own) or last >= size:
        raise CpiftError(f"{where}: {name} has shape {list(given or ())} there, the model saves it as {list(own)}")
