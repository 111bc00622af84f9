"""Shapes that depend on data: exact in host memory, bounded on an accelerator.

How many slots of a table are in use is known at once when the table lies in host memory. On an accelerator, asking
stops the host until the device has caught up. So tables in host memory are shortened to what is in use, and tables
on a device keep their full shape and carry a mask; the code after it is the same for both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def is_countable(tensor: Tensor) -> bool:
    """Whether the tensor's values can be looked at without waiting for a device."""
    return tensor.device.type == "cpu"


def indices_in_use(mask: Tensor) -> Tensor:
    """Flat indices (n,) of the marked entries in host memory, of all entries on a device."""
    if is_countable(mask):
        return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as `nonzero`
    return torch.arange(mask.numel(), device=mask.device)


def whole_quotient(number: Tensor, divisor: int) -> Tensor:
    """Non-negative integers divided by one, rounded down."""
    if is_countable(number):
        return torch.from_numpy(number.numpy() // divisor)  # a fifth of the time of `div`
    return number.div(divisor, rounding_mode="floor")


def counts_in_use(parts: Tensor) -> list[int]:
    """For a mask (parts, ...): how many indices `indices_in_use` returns from each part."""
    if is_countable(parts):
        counts: list[int] = parts.flatten(1).sum(1).tolist()
        return counts
    return [parts[0].numel()] * len(parts)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without making the host wait."""
    if tensor.device == device:
        return tensor
    if is_countable(tensor) and device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from pageable memory first waits for the device
    return tensor.to(device, non_blocking=True)


def copy_between(source: Tensor, destination: Tensor) -> None:
    """Copy values between memory of different layouts."""
    if is_countable(source) and source.dtype == destination.dtype:
        np.copyto(destination.numpy(), source.numpy())  # up to three times as fast as `copy_`
    else:
        destination.copy_(source)
