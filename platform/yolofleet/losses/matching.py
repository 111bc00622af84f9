"""Dynamic-k matching (SimOTA): which candidates answer for which box, for the whole micro-batch at once.

Per image, every box may take any candidate of the image. Its k is the sum of its best overlaps (IoU), rounded down
and at least 1; it takes its k cheapest candidates by class cost - 3 log(IoU), of equal ones the first. A candidate
taken by several boxes goes to the box of the image to which it is cheapest.

The comparison is a table of boxes x candidates of each image. It is worked through in pieces of a bounded number of
entries, several images at a time or part of one, so memory grows with boxes + candidates and, on a CPU, the pieces
stay in the cache. What is kept of a piece differs: in host memory lists of what was taken, on a device masks of fixed
shape. In host memory only a small part of the table is computed for an image with many boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolofleet.losses.arrangement import Arrangement
from yolofleet.losses.boxes import Boxes
from yolofleet.losses.candidates import Places
from yolofleet.losses.comparison import Pairs, offered_candidates, wanted_boxes
from yolofleet.losses.device_choice import choose_on_device
from yolofleet.losses.host_choice import choose_on_host
from yolofleet.losses.hosting import is_countable
from yolofleet.losses.levels import Levels
from yolofleet.losses.workspace import Workspace

# Entries of a table of classes x candidates and of one of boxes x candidates. On a CPU, a few of them fit the cache.
HOST_ENTRIES = (1 << 17, 1 << 18)
DEVICE_ENTRIES = (1 << 26, 1 << 24)


@torch.no_grad()
def match(
    boxes: Boxes,
    places: Places,
    arrangement: Arrangement,
    logits: Tensor,
    levels: Levels,
    *,
    num_best: int,
    published_quirks: bool,
    workspace: Workspace,
) -> Tensor:
    """Match candidates and boxes.

    Args:
        boxes: N boxes.
        places: n candidates.
        arrangement: Their layout.
        logits: (n, 5 + C) raw predictions at the candidates; overwritten.
        levels: The lead levels.
        num_best: How many of the best overlaps make up k.
        published_quirks: Reproduce the published implementation where it is wrong.
        workspace: Scratch memory.

    Returns:
        (n,) the box that each candidate answers for, N for none.
    """
    if len(boxes) == 0 or len(places) == 0:
        return torch.full_like(places.box, len(boxes))
    on_host = is_countable(logits)
    class_entries, pair_entries = HOST_ENTRIES if on_host else DEVICE_ENTRIES
    offered = offered_candidates(
        logits,
        places,
        arrangement,
        levels,
        class_entries=class_entries,
        published_quirks=published_quirks,
        workspace=workspace,
    )
    wanted = wanted_boxes(boxes, levels, published_quirks)
    pairs = Pairs(wanted, offered, arrangement, published_quirks, workspace)
    owner = (choose_on_host if on_host else choose_on_device)(pairs, num_best, pair_entries)
    return torch.empty_like(owner).scatter_(0, arrangement.order, owner)
