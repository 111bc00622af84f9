"""Shapes that depend on data: exact on a CPU, bounded on an accelerator.

How many slots of a table are in use is known at once where the table lies in host memory. On an accelerator, asking
makes the host wait until the device has caught up. So tables on a CPU are shortened to the slots in use, and tables
on a device keep their full shape with a mask; the code that reads them is the same for both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_on_cpu(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def find_slots(mask: Tensor) -> Tensor:
    """Flat indices (n,) of the marked entries on a CPU, of all entries on a device."""
    if is_on_cpu(mask):
        return mask.flatten().nonzero().squeeze(1)
    return torch.arange(mask.numel(), device=mask.device)


def count_slots(parts: Tensor) -> tuple[int, ...]:
    """For a mask (parts, ...): how many indices `find_slots` returns from each part."""
    if is_on_cpu(parts):
        return tuple(parts.flatten(1).sum(1).tolist())
    return (parts[0].numel(),) * len(parts)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without making the host wait."""
    if tensor.device == device:
        return tensor
    if is_on_cpu(tensor) and device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory first waits for the device
    return tensor.to(device, non_blocking=True)
