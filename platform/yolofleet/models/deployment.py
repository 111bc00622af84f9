"""The deployed form: batch norm, RepConv and implicit knowledge folded into plain convolutions (paper 4.1 and 4.3).

    batch norm   W' = W g / s,  b' = beta - mean g / s,  with s = sqrt(variance + epsilon)
    RepConv      the folded 1x1 is added to the centre of the folded 3x3; the identity is a 1x1 of g / s on the diagonal
    implicit     m (W (a + x) + b):  b' = m (b + W a),  W' = m W

Folding is done in float64 and rounded once, to float32 where the weights are of a lower precision. The result is
compared with the original before it is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.models.modules import ConvNormAct, RepConv, lay_channels_innermost
from yolofleet.models.network import Head, Network

TOLERANCE = 1e-4
PROOF_IMAGES = 2
PROOF_SEED = 0


class DeploymentError(UserError):
    """A deployed form does not compute what its training form does."""


def deployed_form(model: Network) -> Network:
    """Return the deployed form in evaluation mode, compared on random images; the original is left as it is.

    Raises:
        DeploymentError: It does not compute the same; names the difference.
    """
    if model.deployed:
        return model
    with torch.device("meta"):
        deployed = Network(model.table, model.num_classes, deployed=True)
    deployed.load_state_dict(folded_state_dict(model), assign=True)
    lay_channels_innermost(deployed)
    deployed.eval().requires_grad_(False)
    if not any(parameter.is_meta for parameter in model.parameters()):
        prove(model, deployed, random_images(model))
    return deployed


def half_weights(model: Network) -> Network:
    """Return a copy whose weights are rounded to half precision; it computes in float32, and its anchors are as before.

    Raises:
        DeploymentError: A weight is larger than half precision can hold.
    """
    rounded = copy.deepcopy(model)
    for name, weight in rounded.named_parameters():
        weight.data = weight.data.half().float()
        if not weight.isfinite().all():
            raise DeploymentError(f"{name} has a weight larger than half precision can hold; release_precision=fp32")
    return rounded


def has_half_weights(model: Network) -> bool:
    """Return whether half precision holds all weights of a model as they are."""
    return all(bool((weight.half().float() == weight).all()) for weight in model.parameters())


def folded_state_dict(model: Network) -> dict[str, Tensor]:
    """Return the weights of the deployed form."""
    state = {"anchors": model.anchors.detach().clone()}
    for step in model.lead_schedule:
        for name, module in model.blocks[step.name].named_modules(prefix=f"blocks.{step.name}"):
            if isinstance(module, ConvNormAct | RepConv):
                state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = _folded(module)
    for level, (weight, bias) in enumerate(_folded_predictions(model.head)):
        state[f"head.lead.{level}.weight"], state[f"head.lead.{level}.bias"] = weight, bias
    return state


def _folded(module: ConvNormAct | RepConv) -> tuple[Tensor, Tensor]:
    assert module.norm is not None
    # 1. The batch norm of the convolution: scale its weights, and make the shift its bias.
    weight, bias = _with_norm(module.conv.weight, module.norm)
    if isinstance(module, RepConv):
        # 2. A 1x1 convolution is a 3x3 one with zeros around the centre, so its folded weights are added there.
        centre = module.conv.kernel_size[0] // 2
        pointwise, pointwise_bias = _with_norm(module.pointwise.weight, module.pointwise_norm)
        weight[:, :, centre, centre] += pointwise[:, :, 0, 0]
        bias = bias + pointwise_bias
        if module.identity_norm is not None:
            # 3. The identity is a 1x1 convolution of each channel with itself; with groups, the input channels of a
            # group are numbered from 0.
            scale, shift = _scale_and_shift(module.identity_norm)
            width = weight.shape[1]  # input channels of a group
            channels = torch.arange(weight.shape[0], device=weight.device)
            weight[channels, channels % width, centre, centre] += scale
            bias = bias + shift
    return _rounded(weight, module.conv), _rounded(bias, module.conv)


def _rounded(tensor: Tensor, conv: nn.Conv2d) -> Tensor:
    """Round to the convolution's precision, but not below float32: the folded form must compute the same."""
    return tensor.to(torch.promote_types(conv.weight.dtype, torch.float32))


def _with_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, shift = _scale_and_shift(norm)
    return weight.detach().double() * scale.view(-1, 1, 1, 1), shift


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def _folded_predictions(head: Head) -> Iterator[tuple[Tensor, Tensor]]:
    for level, conv in enumerate(head.lead):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
        if len(head.add):
            add, multiply = (
                dict(module.named_parameters())["value"].detach().double().view(-1)
                for module in (head.add[level], head.multiply[level])
            )
            # m (W (a + x) + b) = (m W) x + m (W a + b)
            bias = multiply * (bias + weight[:, :, 0, 0] @ add)
            weight = multiply.view(-1, 1, 1, 1) * weight
        yield _rounded(weight, conv), _rounded(bias, conv)


def random_images(model: Network) -> Tensor:
    """Return a few random images (B, 3, 2 s, 3 s), s the largest stride, the same ones every time."""
    generator = torch.Generator().manual_seed(PROOF_SEED)
    side = model.max_stride
    return torch.rand(PROOF_IMAGES, 3, 2 * side, 3 * side, generator=generator)


@torch.no_grad()
def prove(model: Network, deployed: Network, images: Tensor, tolerance: float = TOLERANCE) -> float:
    """Compare the raw lead predictions of the two forms on images, in float32.

    Args:
        model: The training form; its modes and statistics are left as they are.
        deployed: The deployed form.
        images: (B, 3, H, W) in 0..1.
        tolerance: Largest difference allowed, as a share of the largest magnitude of a level.

    Returns:
        The largest difference found, as such a share.

    Raises:
        DeploymentError: The difference is larger, or a prediction is not a finite number.
    """
    images = images.to(model.anchors.device, torch.float32)
    with _evaluating(model), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), _plain_float32(images):
        expected = _single_precision(model).lead(images)
        found = _single_precision(deployed).lead(images)
    worst = 0.0
    for level, (want, got) in enumerate(zip(expected, found, strict=True)):
        error = ((want - got).abs().max() / want.abs().max().clamp_min(1e-12)).item()
        if not error <= tolerance:
            raise DeploymentError(
                f"model {model.table.name}: level {level} of the deployed form differs from the training form by "
                f"{error:.3g} of its range (allowed {tolerance:g}); are all weights finite numbers?"
            )
        worst = max(worst, error)
    return worst


def _single_precision(model: Network) -> Network:
    """Return the model in float32: itself, unless its weights are of another precision."""
    if all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        return model
    with torch.device("meta"):
        copy = Network(model.table, model.num_classes, deployed=model.deployed)
    copy.load_state_dict(
        {n: t.float() if t.is_floating_point() else t for n, t in model.state_dict().items()}, assign=True
    )
    return copy.eval()


def _plain_float32(images: Tensor) -> torch.autocast:
    """Switch automatic mixed precision off, should the caller have it on."""
    return torch.autocast(images.device.type, enabled=False)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
