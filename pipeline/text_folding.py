"""Batch norms of LiteText's RepMixer blocks folded into the convolutions beside them, once, when the encoder is read.

A RepMixer (arXiv 2303.14189, section 3.1, as MobileCLIP's text encoder has it) is a sum of linear maps along the
sequence when it does not train: the input itself, its layer-scaled depthwise convolution, and two normalised copies of
it. All of it is one depthwise convolution.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.sam3_lite_text.modeling_sam3_lite_text import Sam3LiteTextRepMixerBlock


@torch.no_grad()
def fold(encoder: nn.Module) -> None:
    """Replace every token mixer by one convolution, in place; an encoder without RepMixer blocks stays as it is."""
    for block in encoder.modules():
        if isinstance(block, Sam3LiteTextRepMixerBlock):
            mixer, forward = cast(Any, block.token_mixer), cast(Any, block.conv_feed_forward)
            block.token_mixer = _mixer(mixer)
            scale, shift = _line(forward.depthwise_batchnorm)
            kernel = forward.depthwise_conv.weight.double() * _along(scale)
            forward.depthwise_conv = _depthwise(kernel, shift, forward.depthwise_conv)
            forward.depthwise_batchnorm = nn.Identity()


def _mixer(mixer: Any) -> nn.Conv2d:
    """``x + layer_scale * (norm(conv(x)) + skip_norm(x) - reference_norm(x))``."""
    conv = mixer.mixer.conv
    scale, shift = _line(mixer.mixer.batchnorm_conv)
    skip_scale, skip_shift = _line(mixer.mixer.batchnorm_skip)
    reference_scale, reference_shift = _line(mixer.reference_batchnorm)
    layer_scale = mixer.layer_scale.double().flatten()
    kernel = conv.weight.double() * _along(scale * layer_scale)
    kernel[..., kernel.shape[-1] // 2] += (layer_scale * (skip_scale - reference_scale) + 1)[:, None, None]
    return _depthwise(kernel, layer_scale * (shift + skip_shift - reference_shift), conv)


def _line(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(C,)`` of a batch norm that does not train, float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _along(per_channel: Tensor) -> Tensor:
    return per_channel[:, None, None, None]


def _depthwise(kernel: Tensor, bias: Tensor, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution like ``like`` with this kernel and bias."""
    size, padding = cast(tuple[int, int], like.kernel_size), cast(tuple[int, int], like.padding)
    made = nn.Conv2d(like.in_channels, like.out_channels, size, padding=padding, groups=like.groups)
    made.weight, made.bias = (nn.Parameter(t.to(like.weight.dtype), requires_grad=False) for t in (kernel, bias))
    return made.eval()
