"""Every worker holds a share of the optimiser's moments (ZeRO-1), and of the gradients too (ZeRO-2): DeepSpeed.

DeepSpeed lays the parameters of a group out one after the other in a flat tensor and gives each worker an equal piece.
Its own checkpoints are pickles with a layout of their own, so moments are gathered from the pieces by parameter name
and cut into pieces again: a run resumes from a checkpoint of any strategy, with any number of workers. The weights are
whole float32 on every worker between two steps; bf16 is autocast around the passes.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call

from yolofleet.models.memory import ZERO_BUCKET_BYTES
from yolofleet.training.loop.update import group_parameters, moment_prefixes, moment_state
from yolofleet.training.loop.worker_group import WorkerGroup

BUCKET_ELEMENTS = ZERO_BUCKET_BYTES // 4
"""Gradients exchanged at once, float32."""


def as_held(parameter: torch.Tensor) -> torch.Tensor:
    """View a convolution kernel as (out, height, width, in); anything else as it is."""
    return parameter.permute(0, 2, 3, 1) if parameter.dim() == 4 else parameter


def as_used(held: torch.Tensor) -> torch.Tensor:
    """View what `as_held` returned as the network's parameter."""
    return held.permute(0, 3, 1, 2) if held.dim() == 4 else held


class HeldKernels(nn.Module):
    """A model's parameters as DeepSpeed holds them, and the model that computes with views of them.

    DeepSpeed holds a parameter's elements in the order of its dimensions. So a kernel is held as (out, height,
    width, in), and the model sees it with its channels innermost in memory, as under every other strategy: it is
    computed by the same kernels, to the same rounding.

    Args:
        model: Its own parameters become views of the held ones by `show`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = [model]  # no child of this module: DeepSpeed must not see its parameters
        for name, parameter in model.named_parameters():
            held = nn.Parameter(as_held(parameter.detach()).contiguous(), requires_grad=parameter.requires_grad)
            self.register_parameter(name.replace(".", "/"), held)

    def of(self, name: str) -> nn.Parameter:
        """Return the held parameter of a name in the model."""
        return self.get_parameter(name.replace(".", "/"))

    def show(self) -> None:
        """Make the model's own parameters views of the held ones, which DeepSpeed has moved."""
        for name, parameter in self._model[0].named_parameters():
            parameter.data = as_used(self.of(name).data)

    def forward(self, images: torch.Tensor) -> Any:
        """Pass images through the model."""
        model = self._model[0]
        views = {name: as_used(self.of(name)) for name, _ in model.named_parameters()}
        return functional_call(model, views, (images,))


class Sharded:
    """The strategies ``zero1`` and ``zero2``.

    Args:
        model: The model, with the weights to start from.
        optimizer: That over its parameter groups, with the moments to start from.
        group: This worker.
        stage: 1 or 2.
        micro_batch_size: Samples of a micro-batch, which DeepSpeed asks for.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        group: WorkerGroup,
        *,
        stage: int,
        micro_batch_size: int,
    ) -> None:
        moments = moment_state(model, optimizer)
        counts = [state["step"] for state in optimizer.state.values() if "step" in state]  # Adam's, all alike
        self._prefixes = moment_prefixes(optimizer)
        optimizer.state.clear()
        self._groups = [members for members in group_parameters(model).values() if members]
        kernels = HeldKernels(model)
        held = {id(parameter): kernels.of(name) for name, parameter in model.named_parameters()}
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        for settings in optimizer.param_groups:
            settings["params"] = [held[id(parameter)] for parameter in settings["params"]]
        self._group = group
        self._engine = _engine(kernels, optimizer, stage, micro_batch_size)
        self._sharded: Any = self._engine.optimizer
        kernels.show()
        self.network: nn.Module = kernels
        self.optimizer: torch.optim.Optimizer = self._sharded
        if moments:
            self._load(moments, counts)

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Tell DeepSpeed whether a micro-batch is the last of its step."""
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a gradient. Workers average theirs; times their number it is the sum over all micro-batches."""
        self._engine.backward(loss * self._group.world_size, scale_wrt_gas=False)

    def gradient_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient from every worker's piece."""
        norm = torch.as_tensor(self._sharded.scaled_global_norm(), dtype=torch.float32, device=self._group.device)
        return torch.where(norm < 0, torch.full_like(norm, torch.inf), norm)  # DeepSpeed says -1 for NaN

    def step(self, finite: torch.Tensor) -> None:
        """Step if the gradient is finite, each worker its piece, and gather the weights; forget the gradient.

        The host waits for the flag, as DeepSpeed lets it wait for its own.
        """
        if not bool(finite):  # DeepSpeed skips by the gradient, which a NaN loss need not make non-finite
            for pieces in self._sharded.averaged_gradients.values():
                for piece in pieces or []:
                    piece.fill_(torch.nan)
        self._engine.step()

    def moments(self) -> dict[str, torch.Tensor]:
        """Return the whole moments by parameter name; a collective."""
        found: dict[str, torch.Tensor] = {}
        for members, piece in zip(self._groups, self._sharded.single_partition_of_fp32_groups, strict=True):
            for key, prefix in self._prefixes.items():
                own = self._sharded.optimizer.state[piece].get(key)
                own = torch.zeros_like(piece) if own is None else own
                pieces = [torch.empty_like(own) for _ in range(self._group.world_size)]
                dist.all_gather(pieces, own.contiguous())
                flat = torch.cat(pieces)  # (elements of the group, padded to a multiple of the workers)
                begin = 0
                for name, parameter in members:
                    held = flat[begin : begin + parameter.numel()].view(as_held(parameter).shape)
                    found[prefix + name] = as_used(held)
                    begin += parameter.numel()
        return found

    def _load(self, moments: dict[str, torch.Tensor], counts: list[torch.Tensor]) -> None:
        """Cut the whole moments into pieces and keep this worker's."""
        for members, piece in zip(self._groups, self._sharded.single_partition_of_fp32_groups, strict=True):
            state = self._sharded.optimizer.state[piece]
            for key, prefix in self._prefixes.items():
                flat = torch.zeros(piece.numel() * self._group.world_size, dtype=piece.dtype, device=piece.device)
                begin = 0
                for name, parameter in members:
                    if prefix + name in moments:
                        flat[begin : begin + parameter.numel()] = as_held(moments[prefix + name]).to(piece).reshape(-1)
                    begin += parameter.numel()
                state[key] = flat[self._group.rank * piece.numel() : (self._group.rank + 1) * piece.numel()].clone()
            if counts:
                state["step"] = counts[0].clone()


def _engine(model: nn.Module, optimizer: torch.optim.Optimizer, stage: int, micro_batch_size: int) -> Any:
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its collective for the CPUs of one host would be compiled at its first use, for a minute, by a compiler that may
    # be missing; torch's own does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": 1,  # the loop itself says which micro-batch is the last
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": BUCKET_ELEMENTS,
                "allgather_bucket_size": BUCKET_ELEMENTS,
                "overlap_comm": False,
            },
            "gradient_clipping": 0.0,  # the default would clip to a norm of 1
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        },
    )
    return engine
