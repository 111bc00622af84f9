"""The device that a user names."""

from __future__ import annotations

import torch

from yolofleet.errors import UserError


def chosen_device(name: str, setting: str) -> torch.device:
    """Return a device that works here; ``auto`` takes a GPU where there is one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        setting: Where the user named it, for the error.

    Raises:
        UserError: No such device, or none that works here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch tells what is missing in all three
        reason = str(error).splitlines()[0]
        raise UserError(f"{setting} {name}: {reason}; use auto, cpu, cuda or cuda:N") from None
    return device
