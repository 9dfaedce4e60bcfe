"""SAM3's tracker networks, run once for all objects: neck, memory attention, mask decoder, memory encoder.

The modules are those of transformers' ``Sam3TrackerVideoModel``; what is new is the batching over objects (its own
forward handles one) and leaving out what no object reads. Results equal the one-object forward up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compiled import COMPILER, Backend, CudaGraphs, bucket, compiled, padded
from pipeline.device_memory import upload, with_smaller_batches
from pipeline.telemetry import LOGGER
from pipeline.types import Int64Array
from trackers.memory_bank import MemoryBank, Reading

T = TypeVar("T")

_BUDGET_BYTES = 2**31
"""Working memory of one batch of memory attention, where nobody says how much is free."""
_FREE_SHARE = 0.25
"""... and this part of a CUDA device's free memory."""
_COPIES = 8
"""Keys, rotated keys (in float32), values and their copies, in sizes of one object's keys."""
_CPU_BUDGET_BYTES = 2**26
"""The same on a CPU, where what fits into its caches is faster: 64 objects in slices take four fifths of the time."""
_CACHED_SCORES_BYTES = 2**23
"""Attention scores of one object that may be written out on a CPU; above it, blockwise attention."""
_FEW, _COMMON = 8, 3
"""Objects in one batch up to which its launches are what it costs on CUDA; calls after which its shapes are common."""
NO_OBJECT_LOGIT = -1024.0
"""Mask logit of an object that is not in the picture (``NO_OBJ_SCORE`` of SAM2 and SAM3)."""


@dataclass(frozen=True, slots=True)
class Vision:
    """One frame as the tracker sees it."""

    fine: Tensor
    """``(1, C/8, 4h, 4w)`` after ``conv_s0``."""
    middle: Tensor
    """``(1, C/4, 2h, 2w)`` after ``conv_s1``."""
    coarse: Tensor
    """``(1, C, h, w)``"""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the mask decoder says about N objects."""

    logits: Tensor
    """``(N, 4h, 4w)`` low-resolution mask logits, ``NO_OBJECT_LOGIT`` where the object is absent."""
    object_logit: Tensor
    """``(N,)`` belief that the object is in the picture."""
    pointer: Tensor
    """``(N, C)``"""


@dataclass(frozen=True, slots=True)
class CompiledParts:
    """A checkpoint's parts with heads that were compiled once, for the trackers of all streams."""

    neck: Any
    model: Any
    heads: SamHeads

    @classmethod
    def of(cls, parts: Any, backend: Backend) -> CompiledParts:
        """The ``neck`` and ``model`` of ``parts``, and their heads compiled with ``backend``."""
        return cls(parts.neck, parts.model, SamHeads(parts.neck, parts.model).compile(backend))


class SamHeads:
    """The tracker's networks around precomputed constants.

    Args:
        neck: a ``Sam3VisionNeck``.
        model: a ``Sam3TrackerVideoModel``; its vision encoder is not used.
    """

    def __init__(self, neck: Any, model: Any) -> None:
        self._neck, self._model, self._config = neck, model, model.config
        weight = model.no_memory_embedding
        self.budget_bytes = _budget_bytes(weight.device)
        self.one_by_one: bool = weight.device.type == "cpu" and weight.dtype == torch.float32
        """Whether objects read their memories one after another, in the cache of a CPU, or in one batch."""
        self.written_out_bytes = _CACHED_SCORES_BYTES
        """Size of one object's attention scores up to which reading one by one writes them out."""
        self._is_compiled, self._is_fused = False, False
        self._layer: Callable[..., Tensor] = self._attention_layer
        self._seen: Callable[..., tuple[Tensor, ...]] = self._see
        self._found: Callable[..., tuple[Tensor, ...]] = self._find
        self._tracked: Callable[..., tuple[Tensor, ...]] = self._track
        self._begun: Callable[..., tuple[Tensor, ...]] = self._begin
        self._remembered: Callable[..., tuple[Tensor, ...]] = self._remember
        grid = model.prompt_encoder.image_embedding_size
        self._grid = (int(grid[0]), int(grid[1]))
        self._constants()

    @torch.no_grad()
    def _constants(self) -> None:
        """Everything that is the same on every frame: position encodings, the empty prompt, rotary angles."""
        model = self._model
        weight = model.no_memory_embedding
        device, dtype = weight.device, weight.dtype
        self._levels = fuse_neck(self._neck, model.mask_decoder, self._grid)
        shape = (1, model.hidden_dim, *self._grid)
        position = self._neck.position_encoding(shape, device, dtype).flatten(2).transpose(1, 2)
        self._coarse_position = position.to(dtype)
        self._image_position = model.get_image_wide_positional_embeddings()
        # A tracked frame has no prompt: one padding point (label -1), and no mask.
        nothing = torch.zeros(1, 1, 1, 2, device=device, dtype=dtype)
        label = -torch.ones(1, 1, 1, dtype=torch.int32, device=device)
        self._no_points, self._no_mask = model.prompt_encoder(nothing, label, None, None)
        memory_shape = (1, model.mem_dim, *self._grid)
        memory_position = model.memory_encoder.position_encoding(memory_shape, device, dtype)
        self._memory_position = memory_position.flatten(2).transpose(1, 2)
        attention = model.memory_attention
        cos, sin = attention.rotary_emb(self._coarse_position, attention.position_ids)
        # Each angle stands twice, for the two halves of a pair.
        self._turns = torch.complex(cos[0, :, ::2].float(), sin[0, :, ::2].float())

    def compile(self, backend: Backend = COMPILER) -> SamHeads:
        """Compile memory attention, mask decoding and memory encoding; batches of objects are padded to a few sizes.

        The layers of attention share their graphs. How much is remembered changes with every frame at first: it is a
        dynamic dimension. On CUDA everything is recorded instead: a few objects at a time cost their launches, which
        compiling leaves; many at a time run as they are. Copies of the heads (``copy.copy``) share what is compiled.
        """
        self._is_compiled, self.one_by_one = True, False
        if self.device.type == "cuda":
            self._seen = CudaGraphs(self._see)
            self._found, self._begun, self._remembered = (
                CudaGraphs(part, after=_COMMON, most_rows=_FEW) for part in (self._find, self._begin, self._remember)
            )
        else:
            self._is_fused, self._layer = True, compiled(self._attention_layer, backend, dynamic=None)
            self._tracked, self._remembered = compiled(self._track, backend), compiled(self._remember, backend)
        return self

    def _size(self, count: int) -> int:
        """Rows of a batch for so many objects."""
        return bucket(count, max(count, self.max_rows)) if self._is_compiled and count else count

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        device: torch.device = self._coarse_position.device
        return device

    @property
    def mask_size(self) -> tuple[int, int]:
        """``(4h, 4w)`` of low-resolution masks."""
        return 4 * self._grid[0], 4 * self._grid[1]

    @property
    def max_rows(self) -> int:
        """Objects per batch under the memory budget."""
        return max(1, self.budget_bytes // self._object_bytes)

    @property
    def _object_bytes(self) -> int:
        """Working memory of one object: keys, values and their copies dominate."""
        config = self._config
        frames = config.num_maskmem - 1 + config.max_cond_frame_num
        return int(frames * self._coarse_position.numel() * self._coarse_position.element_size() * _COPIES)

    @property
    def _several(self) -> bool:
        """Whether a tracked object is chosen among several masks."""
        config = self._config
        wanted = config.multimask_output_in_sam and config.multimask_output_for_tracking
        return bool(wanted and config.multimask_min_pt_num <= 0 <= config.multimask_max_pt_num)

    def nothing(self) -> Decoded:
        """No objects."""
        empty = self._coarse_position.new_zeros(0, dtype=torch.float32)
        return Decoded(empty.reshape(0, *self.mask_size), empty, empty.reshape(0, self._model.hidden_dim))

    def vision(self, hidden: Tensor) -> Vision:
        """The neck on the shared ViT's ``last_hidden_state`` ``(1, tokens, C)``."""
        return Vision(*self._seen(hidden))

    def _see(self, hidden: Tensor) -> tuple[Tensor, ...]:
        spatial = _to_map(hidden, self._grid)
        return tuple(level(spatial) for level in self._levels)

    def propagate(self, vision: Vision, bank: MemoryBank, step: int, rows: Int64Array | None = None) -> Decoded:
        """Find every object of the bank, or those of ``rows``, on frame ``step``; in the bank's order.

        As many at a time as the budget allows; without memory for it, half as many from then on.
        """
        count = len(bank) if rows is None else len(rows)
        return self._fitting(lambda size: self._propagate(vision, bank.read(step, size, rows)), count)

    def _fitting(self, run: Callable[[int], T], count: int) -> T:
        """Run with batches under the budget, which shrinks for good if the device has no memory for one."""
        most = min(self.max_rows, max(count, 1))
        result, size = with_smaller_batches(run, most, "object")
        if size < most:
            self.budget_bytes = size * self._object_bytes
            LOGGER.warning("out of memory: %d objects at a time from now on", size)
        return result

    def _propagate(self, vision: Vision, readings: Iterable[Reading]) -> Decoded:
        parts, rows = [], []
        for reading in readings:
            parts.append(self._read(vision, reading))
            rows.append(reading.rows)
        order = np.argsort(np.concatenate(rows), kind="stable")
        at = upload(order, vision.coarse.device)
        together = [torch.cat([getattr(part, name) for part in parts])[at] for name in Decoded.__slots__]
        return Decoded(*together)

    def _read(self, vision: Vision, reading: Reading) -> Decoded:
        """The objects of one reading, in its order."""
        count, device = len(reading.rows), self.device
        ages = (upload(age, device) for age in (reading.memory_age, reading.pointer_age))
        memory_age, pointer_age = ages
        given = (reading.memory, memory_age, reading.pointer, pointer_age)
        size = self._size(count)
        found = self._found(vision.fine, vision.middle, vision.coarse, *(padded(part, size) for part in given))
        return Decoded(*(part[:count] for part in found))

    def _find(
        self,
        fine: Tensor,
        middle: Tensor,
        coarse: Tensor,
        memory: Tensor,
        memory_age: Tensor,
        pointer: Tensor,
        pointer_age: Tensor,
    ) -> tuple[Tensor, ...]:
        """The columns of :class:`Decoded`; see :class:`trackers.memory_bank.Reading` for what is given."""
        tokens, position, num_pointers = self._memory_tokens(memory, memory_age, pointer, pointer_age)
        features = self._attend(coarse, tokens, position, num_pointers)
        return self._tracked(fine, middle, features)

    def _attend(self, coarse: Tensor, memory: Tensor, position: Tensor, num_pointers: int) -> Tensor:
        """Memory-conditioned features ``(G, C, h, w)`` (SAM2, section 4: memory attention)."""
        # The first self-attention sees the frame only: all objects share it.
        x = coarse.flatten(2).transpose(1, 2) + 0.1 * self._coarse_position
        for layer in self._model.memory_attention.layers:
            x = self._layer(layer, x, position, memory, num_pointers)
        x = self._model.memory_attention.layer_norm(x)
        return _to_map(x, self._grid)

    def _attention_layer(self, layer: Any, x: Tensor, position: Tensor, memory: Tensor, num_pointers: int) -> Tensor:
        x = x + self._self_attention(layer, x)
        x = x + self._cross_attention(layer, x, position, memory, num_pointers)
        out: Tensor = x + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(x))))
        return out

    def _memory_tokens(
        self, memory: Tensor, memory_age: Tensor, pointer: Tensor, pointer_age: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Tokens ``(G, K, 64)``, their positions (same shape), and how many of the last are pointers."""
        model, dtype = self._model, self._coarse_position.dtype
        memory = memory.to(dtype)
        # Age 1 is row 0; a conditioning frame (age 0) takes the last row.
        temporal = model.memory_temporal_positional_encoding[:, 0, 0][memory_age - 1]
        position = self._memory_position[:, None] + temporal[:, :, None]
        splits = model.hidden_dim // model.mem_dim
        pointer = pointer.to(dtype).unflatten(2, (splits, model.mem_dim)).flatten(1, 2)
        pointer_position = self._pointer_position(pointer_age.float()).repeat_interleave(splits, dim=1)
        tokens = torch.cat([memory.flatten(1, 2), pointer], dim=1)
        return tokens, torch.cat([position.flatten(1, 2), pointer_position], dim=1), int(pointer.shape[1])

    def _pointer_position(self, age: Tensor) -> Tensor:
        """``(G, P, 64)`` sine encoding of how many frames ago ``(G, P)`` a pointer is from."""
        model, reference = self._model, self._coarse_position
        if not self._config.enable_temporal_pos_encoding_for_object_pointers:
            return torch.zeros(*age.shape, model.mem_dim, dtype=reference.dtype, device=reference.device)
        sine = _sine_encoding(age / (self._config.max_object_pointers_in_encoder - 1), model.hidden_dim)
        encoded: Tensor = model.temporal_positional_encoding_projection_layer(sine.to(reference.dtype))
        return encoded

    def _self_attention(self, layer: Any, x: Tensor) -> Tensor:
        attention, x = layer.self_attn, layer.layer_norm1(x)
        query, key = (self._rotate(_heads(project(x), attention)) for project in (attention.q_proj, attention.k_proj))
        return _merge(F.scaled_dot_product_attention(query, key, _heads(attention.v_proj(x), attention)), attention)

    def _cross_attention(self, layer: Any, x: Tensor, position: Tensor, memory: Tensor, num_pointers: int) -> Tensor:
        attention, count = layer.cross_attn_image, len(memory)
        query = self._rotate(_heads(attention.q_proj(layer.layer_norm2(x)), attention)).expand(count, -1, -1, -1)
        spatial = memory.shape[1] - num_pointers
        if self.one_by_one:
            return self._read_one_by_one(attention, query, position, memory, spatial)
        key = _heads(attention.k_proj(memory + position), attention)
        key = torch.cat([self._rotate(key[:, :, :spatial]), key[:, :, spatial:]], dim=2)
        value = _heads(attention.v_proj(memory), attention)
        return _merge(F.scaled_dot_product_attention(query, key, value), attention)

    def _read_one_by_one(self, attention: Any, query: Tensor, position: Tensor, memory: Tensor, spatial: int) -> Tensor:
        """Cross attention object by object: on a CPU what fits into its cache is faster than one large batch.

        Keys are rotated in place. Where the scores are small they are written out, and what they weight is the memory
        itself, half or a quarter as wide as the values: weights sum to one, so projecting afterwards is the same.
        """
        heads, num_queries, width = query.shape[1:]
        small = heads * num_queries * memory.shape[1] * memory.element_size() <= self.written_out_bytes
        turns = self._turns[:, None]
        out = []
        for q, p, m in zip(query, position, memory, strict=True):
            key = attention.k_proj(m + p).unflatten(1, (heads, width))
            pairs = torch.view_as_complex(key[:spatial].unflatten(0, (-1, len(turns))).unflatten(-1, (-1, 2)))
            pairs.mul_(turns)
            if small:
                weight = torch.softmax((q * width**-0.5) @ key.permute(1, 2, 0), dim=-1)
                projection = attention.v_proj.weight.unflatten(0, (heads, width))
                seen = (weight @ m) @ projection.transpose(1, 2)
                out.append(seen.transpose(0, 1).flatten(1) + attention.v_proj.bias)
            else:
                value = attention.v_proj(m).unflatten(1, (heads, width)).transpose(0, 1)
                seen = F.scaled_dot_product_attention(q[None], key.transpose(0, 1)[None], value[None])[0]
                out.append(seen.transpose(0, 1).flatten(1))
        read: Tensor = attention.o_proj(torch.stack(out))
        return read

    def _rotate(self, x: Tensor) -> Tensor:
        """Axial rotary encoding of ``(G, heads, F * h * w, d)``, the same for each of F frames, in float32."""
        turns = self._turns
        if self._is_fused:  # torch.compile fuses real arithmetic only
            cos, sin = torch.view_as_real(turns).unbind(-1)
            a, b = x.float().unflatten(2, (-1, len(turns))).unflatten(-1, (-1, 2)).unbind(-1)
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
            return turned.flatten(-2).flatten(2, 3).to(x.dtype)
        pairs = torch.view_as_complex(x.float().unflatten(2, (-1, len(turns))).unflatten(-1, (-1, 2)))
        rotated: Tensor = torch.view_as_real(pairs * turns).flatten(-2).flatten(2, 3).to(x.dtype)
        return rotated

    def _track(self, fine: Tensor, middle: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """Objects that were found before: no prompt."""
        return self._decode(fine, middle, features, self._no_mask, self._several)

    def _decode(
        self, fine: Tensor, middle: Tensor, features: Tensor, mask_prompt: Tensor, several: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """SAM's mask decoder without points: its single mask, or the best of ``several`` by predicted IoU.

        Returns:
            The columns of :class:`Decoded`.
        """
        count = len(features)
        masks, iou, tokens, object_logit = self._model.mask_decoder(
            image_embeddings=features,
            image_positional_embeddings=self._image_position,
            sparse_prompt_embeddings=self._no_points.expand(count, -1, -1, -1),
            dense_prompt_embeddings=mask_prompt,
            multimask_output=several,
            high_resolution_features=[fine, middle],
        )
        rows, best = torch.arange(count, device=features.device), iou[:, 0].argmax(-1)
        logit = object_logit[:, 0, 0].float()
        present = logit > 0
        logits = torch.where(present[:, None, None], masks[rows, 0, best].float(), NO_OBJECT_LOGIT)
        pointer = self._model.object_pointer_proj(tokens[rows, 0, best])
        return logits, logit, torch.where(present[:, None], pointer, self._model.no_object_pointer)

    def begin(self, vision: Vision, masks: Tensor) -> tuple[Tensor, Tensor]:
        """First memory ``(K, S, 64)`` and pointer ``(K, C)`` of new objects from binary masks ``(K, 4h, 4w)``.

        A mask is output and memory at once, as SAM2's mask prompt (``_use_mask_as_output``).
        """

        def batch(part: Tensor) -> list[Tensor]:
            given = padded(part, self._size(len(part)))
            return [column[: len(part)] for column in self._begun(vision.fine, vision.middle, vision.coarse, given)]

        parts = self._fitting(lambda size: [batch(part) for part in masks.split(size)], len(masks))
        memory, pointer = zip(*parts, strict=True)
        return torch.cat(memory), torch.cat(pointer)

    def _begin(self, fine: Tensor, middle: Tensor, coarse: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        model, dtype = self._model, coarse.dtype
        side = (model.image_size, model.image_size)
        soft = _resize(masks[:, None].float(), side)
        prompt = model.mask_downsample(soft.to(dtype))
        prompt = _resize(prompt.float(), model.prompt_encoder.mask_input_size).to(dtype)
        features = coarse.expand(len(masks), -1, -1, -1)
        embedded = model.prompt_encoder.mask_embed(prompt)
        found = self._decode(fine, middle, features, embedded, several=True)[2]
        visible = masks.flatten(1).any(1)
        pointer = torch.where(visible[:, None], found, model.no_object_pointer)
        inside = _resize(soft * 20 - 10, self._memory_side) > 0
        return self._encode(coarse, inside.to(dtype), visible), pointer

    def remember(self, vision: Vision, logits: Tensor) -> Tensor:
        """Memory ``(M, S, 64)`` of mask logits ``(M, 4h, 4w)``; one without a positive pixel is absent."""

        def batch(part: Tensor) -> Tensor:
            (memory,) = self._remembered(vision.coarse, padded(part, self._size(len(part))))
            return memory[: len(part)]

        return self._fitting(lambda size: torch.cat([batch(part) for part in logits.split(size)]), len(logits))

    def _remember(self, coarse: Tensor, logits: Tensor) -> tuple[Tensor]:
        enlarged = _resize(logits[:, None].float(), self._memory_side).to(coarse.dtype)
        return (self._encode(coarse, torch.sigmoid(enlarged), (logits > 0).flatten(1).any(1)),)

    @property
    def _memory_side(self) -> tuple[int, int]:
        height, width = self._model.prompt_encoder.mask_input_size
        return 4 * height, 4 * width

    def _encode(self, coarse: Tensor, inside: Tensor, present: Tensor) -> Tensor:
        """Memory encoder on mask probabilities ``(N, 1, H, W)``, kept as bfloat16 like both references do."""
        config = self._config
        scaled = inside * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        features, _ = self._model.memory_encoder(coarse, scaled)
        absent = self._model.occlusion_spatial_embedding_parameter
        if absent is not None:
            features = features + (~present).to(features.dtype)[:, None, None, None] * absent[..., None, None]
        memory: Tensor = features.to(torch.bfloat16).flatten(2).transpose(1, 2)
        return memory


def _budget_bytes(device: torch.device) -> int:
    """Working memory of one batch: a share of what is free, or what fits into a CPU's caches."""
    if device.type == "cpu":
        return _CPU_BUDGET_BYTES
    if device.type != "cuda":
        return _BUDGET_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_FREE_SHARE * (free + idle))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, as both references resize masks; the input itself if it has the size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _heads(x: Tensor, attention: Any) -> Tensor:
    """``(G, n, heads * d)`` -> ``(G, heads, n, d)``."""
    heads: int = attention.num_attention_heads
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(G, h * w, C)`` -> ``(G, C, h, w)``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _merge(x: Tensor, attention: Any) -> Tensor:
    """``(G, heads, n, d)`` -> ``(G, n, C)`` through the output projection."""
    merged: Tensor = attention.o_proj(x.transpose(1, 2).flatten(2))
    return merged


def _sine_encoding(position: Tensor, channels: int) -> Tensor:
    """``(..., channels)`` of positions ``(...)`` (Vaswani et al. 2017, 3.5; halves of sines and cosines)."""
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=position.device)
    angle = position[..., None] / 10000 ** (2 * (index // 2) / half)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class FusedLevel(nn.Module):
    """One pyramid level: upsampling, then the linear chain 1x1 -> 3x3 (-> 1x1) as a single 3x3 convolution.

    The chain's biases do not commute with the 3x3's zero padding, so their effect is a map of its own.
    """

    weight: Tensor
    bias_map: Tensor

    def __init__(self, level: Any, tail: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.upsample = nn.Sequential(*level.scale_layers)
        first, middle = level.proj1, level.proj2
        weight, bias = middle.weight.double(), middle.bias.double()
        if tail is not None:
            last = tail.weight.double()[:, :, 0, 0]
            weight = torch.einsum("om,mihw->oihw", last, weight)
            bias = last @ bias + tail.bias.double()
        fused = torch.einsum("omhw,mi->oihw", weight, first.weight.double()[:, :, 0, 0])
        # On a 3x3 grid every kind of pixel occurs once: corners, borders, the inside.
        kinds = F.conv2d(first.bias.double()[None, :, None, None].expand(1, -1, 3, 3), weight, bias, padding=1)
        rows, cols = ([0] + [1] * (n - 2) + [2] for n in size)
        bias_map = kinds[:, :, rows][:, :, :, cols]
        self.register_buffer("weight", fused.to(first.weight.dtype), persistent=False)
        self.register_buffer("bias_map", bias_map.to(first.weight.dtype), persistent=False)

    def forward(self, spatial: Tensor) -> Tensor:
        """``(1, C, h, w)`` -> this level."""
        lifted = self.upsample(spatial.to(self.weight.dtype))
        return F.conv2d(lifted, self.weight, padding=1) + self.bias_map


def fuse_neck(neck: Any, mask_decoder: Any, grid: tuple[int, int]) -> nn.ModuleList:
    """Levels 4x (with ``conv_s0``), 2x (with ``conv_s1``) and 1x of the neck; the unused 0.5x is left out."""
    tails = (mask_decoder.conv_s0, mask_decoder.conv_s1, None)
    height, width = grid
    return nn.ModuleList(
        FusedLevel(level, tail, (scale * height, scale * width))
        for level, tail, scale in zip(neck.fpn_layers, tails, (4, 2, 1), strict=False)
    )
