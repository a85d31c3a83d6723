"""Why updates are exactly zero: parameters that were not trained, rows of tokens never seen, or half precision."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from cpift.checkpoint.stream import BLOCK, Checkpoint, native
from cpift.files.findings import Finding, finding
from cpift.kernels.loops import Loops, loops_for

MANY = 0.05  # share of zero updates from which a user should know, and from which the reasons are looked for
_EMBEDDING = re.compile(r"(^|\.)(embed\w*|wte|word_embeddings|tok_embeddings)\.weight$")
_HALF = {"BF16", "F16"}


def reasons(
    base: Checkpoint, tuned: Checkpoint, zeros: Mapping[str, int], total: int, loops: Loops | None = None
) -> dict[str, object]:
    """Where the zero updates lie; only an embedding with whole rows of them is read for it.

    Args:
        base: the checkpoint before the training.
        tuned: the checkpoint after it.
        zeros: number of zero updates by counted parameter.
        total: number of counted elements.
        loops: that compare; by default those for as many elements.

    Returns:
        Shares of all elements: ``zero_share_untrained`` in parameters without any update, ``zero_share_unseen`` in other
        rows of an embedding without any. ``dtype``: how most elements of ``tuned`` are stored. Empty where few are zero.
    """
    if not total or sum(zeros.values()) <= MANY * total:
        return {}
    sizes = {name: base.tensors[name].size for name in zeros}
    untrained = {name for name, count in zeros.items() if count == sizes[name]}
    unseen = 0
    for name in set(zeros) - untrained:
        shape = base.tensors[name].shape
        if _EMBEDDING.search(name) and len(shape) == 2 and zeros[name] >= shape[1]:
            unseen += shape[1] * _unchanged_rows(base, tuned, name, loops or loops_for(total))
    stored = Counter[str]()
    for name in zeros:
        stored[tuned.tensors[name].dtype] += sizes[name]
    return {
        "zero_share_untrained": sum(sizes[name] for name in untrained) / total,
        "zero_share_unseen": unseen / total,
        "dtype": stored.most_common(1)[0][0],
    }


def _unchanged_rows(base: Checkpoint, tuned: Checkpoint, name: str, loops: Loops) -> int:
    """Rows without any update; of all others the first elements are looked at alone."""
    rows, width = base.tensors[name].shape
    step, unchanged = max(1, BLOCK // width), 0
    for first in range(0, rows, step):
        last = min(first + step, rows)
        stored = [native(c.raw(name, first * width, last * width)) for c in (base, tuned)]
        addresses = np.array([part.ctypes.data for part in stored], np.int64)
        itemsizes = np.array([part.itemsize for part in stored], np.int64)
        unchanged += loops.count_unchanged_rows(addresses, itemsizes, last - first, width)
    return unchanged


def zero_warnings(name: str, statistics: Mapping[str, Any]) -> list[Finding]:
    """What a user should know of the zero updates of the region ``name``, reason by reason."""
    zeros = float(statistics.get("zero_share", 0.0))
    if zeros <= MANY:
        return []
    stored = statistics.get("dtype")
    if (
        stored is None or stored in _HALF
    ):  # whole rows and parameters may be hidden as well: the reasons cannot be separated
        text = (
            f"{name}: {zeros:.0%} of the updates are exactly zero; half precision hides them. "
            "Save the fine-tuned checkpoint in fp32, trained with fp32 master weights"
        )
        return [finding("zero-updates-half", text)]
    untrained = float(statistics.get("zero_share_untrained", 0.0))
    unseen = float(statistics.get("zero_share_unseen", 0.0))
    warnings = []
    if untrained > MANY:
        text = f"{name}: {untrained:.0%} of the updates are in parameters that were not trained, with no update at all"
        warnings.append(finding("untrained-parameters", text))
    if unseen > MANY:
        text = (
            f"{name}: {unseen:.0%} of the updates are in rows of the embedding of tokens never seen in the training, "
            "with no update at all; this is no loss of precision"
        )
        warnings.append(finding("unseen-tokens", text))
    rest = zeros - untrained - unseen
    if rest > MANY:
        text = (
            f"{name}: {rest:.0%} of the updates are exactly zero, though the checkpoint is stored in fp32: either its weights "
            "were trained in half precision, or only a part of each parameter was trained"
        )
        warnings.append(finding("zero-updates-fp32", text))
    return warnings
