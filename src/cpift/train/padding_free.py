"""Does a model keep rows apart that stand behind one another in one sequence? ``training.padding_free`` needs that."""

from __future__ import annotations

import torch

from cpift.errors import CpiftError
from cpift.typing import Network

_FIRST, _SECOND = 6, 9  # tokens of the two rows
_DEVIATION = 0.02  # of the logits' range: bf16 stays far below it, and a row that sees another one far above


@torch.no_grad()
def check_rows_apart(network: Network) -> None:
    """Compare two rows as one sequence, with the positions of each, with the second row alone.

    Attention by flash kernels is trusted: TRL hands them the borders of the rows.

    Args:
        network: the model, where it is trained.

    Raises:
        CpiftError: its attention or its states reach from one row into the next.
    """
    if "flash" in str(getattr(network.config, "_attn_implementation", "")):
        return
    trained, device = network.training, network.device
    ids = torch.randint(
        0,
        int(network.get_input_embeddings().weight.shape[0]),
        (1, _FIRST + _SECOND),
        generator=torch.Generator().manual_seed(0),
    ).to(device)
    positions = torch.cat([torch.arange(_FIRST), torch.arange(_SECOND)]).unsqueeze(0).to(device)
    borders = torch.tensor([0, _FIRST, _FIRST + _SECOND], dtype=torch.int32, device=device)
    longest = max(_FIRST, _SECOND)
    given = {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": (torch.arange(_FIRST + _SECOND, device=device) >= _FIRST).int().unsqueeze(0),
    }
    network.eval()
    try:
        together = network(input_ids=ids, position_ids=positions, use_cache=False, **given).logits[0, _FIRST:].float()
        alone = network(input_ids=ids[:, _FIRST:], use_cache=False).logits[0].float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CpiftError(_refused(" ".join(str(error).split())[:200])) from error
    finally:
        network.train(trained)
    if (together - alone).abs().max() > _DEVIATION * (alone.max() - alone.min()):
        raise CpiftError(_refused("a row sees the one before it"))


def _refused(why: str) -> str:
    return (
        f"training.padding_free: this model does not keep the rows of a pass apart ({why}); leave it out, or set "
        "attn_implementation to a flash attention"
    )
