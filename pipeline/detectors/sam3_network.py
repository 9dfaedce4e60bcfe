"""The layers of SAM3's detector, put together for many frames and phrases in one call.

Every module is transformers' (``Sam3Model`` and ``Sam3LiteTextModel`` name theirs alike) and every number equals
theirs; only the order of work is ours. transformers' own forward takes one phrase per image, computes all levels and
all masks, and reads shapes and masks back from the device in each decoder layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import box_cxcywh_to_xyxy, inverse_sigmoid

from pipeline.ahead import result_of
from pipeline.compiled import COMPILER, Backend, CudaGraphs, bucket, compiled, padded
from pipeline.device_memory import upload

_MASK_PAIRS = 8
"""(frame, phrase) pairs whose pixel features exist at once: about 250 MB each in bfloat16 at 1008 px."""

_STAGES = 8
"""Parts of the image encoder that are launched one by one: 6 ms of an H200 each, for four frames at 1008 px."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """DETR's answer for B (frame, phrase) pairs with Q queries each. Boxes and logits are float32."""

    memory: Tensor
    """``(B, h*w, C)`` image features after they have seen the phrase."""
    queries: Tensor
    """``(B, Q, C)`` float32."""
    boxes: Tensor
    """``(B, Q, 4)`` xyxy, 0..1."""
    logits: Tensor
    """``(B, Q)``"""
    presence: Tensor
    """``(B, 1)`` logit that the phrase is in the picture at all."""

    @property
    def score(self) -> Tensor:
        """``(B, Q)`` probability: of the query, times that of presence."""
        return self.logits.sigmoid() * self.presence.sigmoid()


class Sam3Network:
    """Runs a detector without its text encoder.

    Args:
        model: ``Sam3LiteTextModel`` or ``Sam3Model`` on its device, in its precision. The small heads that produce
            boxes and scores, and the geometry encoder, are set to float32 in place.
    """

    def __init__(self, model: Any) -> None:
        decoder = model.detr_decoder
        self.backbone: Any = model.vision_encoder.backbone
        self._neck, self._encoder, self._decoder = model.vision_encoder.neck, model.detr_encoder, decoder
        self._masks, self._scoring, self._geometry = (
            model.mask_decoder,
            model.dot_product_scoring,
            model.geometry_encoder,
        )
        weight = decoder.query_embed.weight
        self.dtype: torch.dtype = weight.dtype
        self.row_by_row: bool = weight.device.type == "cpu"
        """Whether what rounds most by the size of its batch is done one by one: on a CPU the neck, the pixel decoder
        and the small heads, which lose little by it. Encoder and DETR stay together; a score may still differ in its
        last digit with what else was in the batch (seen: 1e-7, in a batch of three)."""
        self._batches: tuple[int, int] | None = None
        self._stages: list[Callable[[Tensor], tuple[Tensor, ...]]] = self._encoder_stages()
        self._decoded: Callable[..., tuple[Tensor, ...]] = self._decode_pairs
        self._recorded_pixels: Callable[..., tuple[Tensor, ...]] | None = None
        self._decoder_step: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._decode_layer
        # Small and precise: bfloat16 would round boxes to a percent of the picture, and scores to half a percent.
        for head in (
            decoder.output_layer_norm,
            decoder.box_head,
            decoder.presence_layer_norm,
            decoder.presence_head,
            decoder.ref_point_head,
            decoder.box_rpb_embed_x,
            decoder.box_rpb_embed_y,
            self._scoring,
            self._geometry,
        ):
            head.float()

    def compile(self, most_frames: int, most_pairs: int, backend: Backend = COMPILER) -> None:
        """Compile the image encoder, DETR and the pixel decoder for batches up to these sizes, padded to a few shapes.

        Layer by layer: alike layers share a graph, so 32 layers take two compilations, not minutes of one. On CUDA
        what was compiled is recorded in addition, since launches are a large part of what it costs there.
        """
        self._batches, self.row_by_row = (most_frames, most_pairs), False
        for layer in self.backbone.layers:
            layer.compile(backend=backend, dynamic=False)
        for layer in self._encoder.layers:
            layer.compile(backend=backend, dynamic=None)
        self._decoder_step = compiled(self._decode_layer, backend, dynamic=None)
        if self._decoder.query_embed.weight.device.type == "cuda":
            self._stages = [CudaGraphs(stage) for stage in self._stages]
            self._decoded = CudaGraphs(self._decode_pairs)
            self._recorded_pixels = CudaGraphs(compiled(self._pixels_of, backend, dynamic=None))

    @property
    def num_stages(self) -> int:
        """Steps of :meth:`encoding`."""
        return len(self._stages)

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``(F, 3, S, S)`` to the image encoder's last hidden state ``(F, tokens, C)``."""
        return result_of(self.encoding(pixels))

    def encoding(self, pixels: Tensor) -> Generator[None, None, Tensor]:
        """:meth:`encode` in steps, each of which launches some layers; returns the same, to the bit."""
        count = len(pixels)
        size = count if self._batches is None else bucket(count, max(count, self._batches[0]))
        state = padded(pixels.to(self.dtype), size)
        for stage in self._stages:
            (state,) = stage(state)
            yield
        return state[:count]

    def _encoder_stages(self) -> list[Callable[[Tensor], tuple[Tensor, ...]]]:
        """The image encoder (``Sam3ViTModel.forward``) cut into up to ``_STAGES`` parts of equally many layers."""
        layers = list(self.backbone.layers)
        step = math.ceil(len(layers) / _STAGES)

        def stage(start: int) -> Callable[[Tensor], tuple[Tensor]]:
            def run(state: Tensor) -> tuple[Tensor]:
                if start == 0:
                    side = state.shape[-1] // self.backbone.config.patch_size
                    state = self.backbone.layer_norm(self.backbone.embeddings(state).unflatten(1, (side, side)))
                for layer in layers[start : start + step]:
                    state = layer(state)
                return (state.flatten(1, 2) if start + step >= len(layers) else state,)

            return run

        return [stage(start) for start in range(0, len(layers), step)]

    def coarse(self, states: Tensor) -> Tensor:
        """The neck's level at the encoder's own resolution, ``(F, C, h, w)``: all that DETR needs."""
        features: Tensor = self._each(self._neck.fpn_layers[-2], _as_image(states))
        return features

    def _each(self, run: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        """``run(*batch)``, row by row where the size of a batch would show in the last digits."""
        if not self.row_by_row or len(batch[0]) == 1:
            return run(*batch)
        return torch.cat([run(*row) for row in zip(*(column.split(1) for column in batch), strict=True)])

    def decode(self, coarse: Tensor, text: Tensor, mask: Tensor) -> Decoded:
        """Encoder, decoder and scores for B pairs.

        Args:
            coarse: ``(B, C, h, w)``.
            text: ``(B, L, C)`` prompt tokens.
            mask: ``(B, L)`` bool, true for tokens to attend to.
        """
        count = len(coarse)
        size = count if self._batches is None else bucket(count, max(count, self._batches[1]))
        given = (padded(part, size) for part in (coarse, text, mask))
        # A recording must not read transformers' cache of positions, which forgets.
        return Decoded(*(part[:count] for part in self._decoded(*given, self._position(coarse, self.dtype))))

    def _decode_pairs(self, coarse: Tensor, text: Tensor, mask: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """The columns of :class:`Decoded`; ``position`` is ``(1, h*w, C)``."""
        batch, _, height, width = coarse.shape
        text_bias = torch.where(mask, 0.0, torch.finfo(self.dtype).min).to(self.dtype)[:, None, None]
        tokens = text.to(self.dtype)
        position = position.expand(batch, -1, -1)
        memory = coarse.flatten(2).transpose(1, 2)
        for layer in self._encoder.layers:
            memory = layer(memory, prompt_feats=tokens, vision_pos_encoding=position, prompt_cross_attn_mask=text_bias)
        queries, boxes, presence = self._decode(memory, position, tokens, text_bias, (height, width))
        logits = self._each(lambda q, t, m: self._scoring(q[None], t, m)[0].squeeze(-1), queries, text.float(), mask)
        return memory, queries, box_cxcywh_to_xyxy(boxes), logits, presence

    def _decode(
        self, memory: Tensor, position: Tensor, tokens: Tensor, text_bias: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(B, Q, C)``, boxes cxcywh ``(B, Q, 4)`` and presence logits ``(B, 1)`` of the last layer."""
        decoder, batch = self._decoder, len(memory)
        hidden = torch.cat([decoder.presence_token.weight, decoder.query_embed.weight]).repeat(batch, 1, 1)
        boxes = decoder.reference_points.weight.float().sigmoid().repeat(batch, 1, 1)
        for layer in decoder.layers:
            hidden, queries, boxes = self._decoder_step(layer, hidden, boxes, memory, position, tokens, text_bias, size)
        believed = decoder.presence_layer_norm(hidden[:, :1].float())
        presence = self._each(decoder.presence_head, believed).squeeze(-1)
        limit = decoder.clamp_presence_logit_max_val
        return queries, boxes, presence.clamp(-limit, limit)

    def _decode_layer(
        self,
        layer: nn.Module,
        hidden: Tensor,
        boxes: Tensor,
        memory: Tensor,
        position: Tensor,
        tokens: Tensor,
        text_bias: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer: what it passes on, its queries in float32, and their boxes."""
        decoder = self._decoder
        box_position = decoder.ref_point_head(decoder.position_encoding.encode_boxes(boxes))
        hidden = layer(
            hidden,
            query_pos=box_position.to(self.dtype),
            text_features=tokens,
            vision_features=memory,
            vision_pos_encoding=position,
            text_cross_attn_mask=text_bias,
            # The presence token, row 0, attends to the whole picture alike.
            vision_cross_attn_mask=F.pad(self._box_bias(boxes, size), (0, 0, 1, 0)),
        )
        queries = decoder.output_layer_norm(hidden[:, 1:].float())
        return hidden, queries, (decoder.box_head(queries) + inverse_sigmoid(boxes)).sigmoid()

    def _box_bias(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """How much each query favours each image token for lying in or near its box, ``(B, heads, Q, h*w)``.

        Box relative position bias in log distance, as in ``Sam3DetrDecoder._get_rpb_matrix``, with plain ints for
        the grid: tensors there make the host wait in every layer.
        """
        xyxy = box_cxcywh_to_xyxy(boxes)
        along_y = self._edge_bias(xyxy[..., 1::2], size[0], self._decoder.box_rpb_embed_y)
        along_x = self._edge_bias(xyxy[..., 0::2], size[1], self._decoder.box_rpb_embed_x)
        bias = along_y.unsqueeze(3) + along_x.unsqueeze(2)
        return bias.flatten(2, 3).permute(0, 3, 1, 2).contiguous()

    def _edge_bias(self, edges: Tensor, cells: int, embed: nn.Module) -> Tensor:
        """``(B, Q, cells, heads)`` from the near and far edge ``(B, Q, 2)`` of each box along one axis."""
        grid = torch.arange(cells, device=edges.device, dtype=torch.float32) / cells
        distance = 8 * (grid[:, None] - edges[:, :, None])
        bias: Tensor = embed(distance.sign() * torch.log2(distance.abs() + 1) / math.log2(8))
        return bias.to(self.dtype)

    def _position(self, coarse: Tensor, dtype: torch.dtype) -> Tensor:
        """Sine position of every image token, ``(1, h*w, C)``."""
        shape = torch.Size((1, *coarse.shape[1:]))
        encoding: Tensor = self._neck.position_encoding(shape, coarse.device, torch.float32)
        return encoding.flatten(2).transpose(1, 2).to(dtype)

    def box_tokens(self, coarse: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Prompt tokens ``(1, N + 1, C)``, float32, of N exemplar boxes on one picture.

        Args:
            coarse: ``(1, C, h, w)`` of the picture.
            boxes: ``(1, N, 4)`` float32 cxcywh, 0..1.
            labels: ``(1, N)`` int64: 1 like this, 0 not like this.
        """
        features = coarse.float()
        position = self._position(coarse, torch.float32).transpose(1, 2).view_as(features)
        out = self._geometry(
            box_embeddings=boxes,
            box_mask=torch.ones_like(labels, dtype=torch.bool),
            box_labels=labels,
            img_feats=(features,),
            img_pos_embeds=(position,),
        )
        tokens: Tensor = out.last_hidden_state
        return tokens

    def masks(
        self, states: Tensor, frame: Tensor, decoded: Decoded, text: Tensor, mask: Tensor, pair: Tensor, query: Tensor
    ) -> Tensor:
        """Mask logits ``(N, H, W)``, float32, of some queries of some pairs.

        Args:
            states: ``(F, tokens, C)``.
            frame: ``(B,)`` int64 on the CPU, ascending: the frame of each pair.
            decoded, text, mask: as given to and returned by :meth:`decode`.
            pair: ``(N,)`` int64 on the CPU, ascending.
            query: ``(N,)`` int64 on the CPU.
        """
        active, counts = (column.tolist() for column in pair.unique(return_counts=True))
        at = upload(torch.stack([pair, query]).numpy(), states.device)
        wanted = decoded.queries[at[0], at[1]].to(self.dtype)
        if self.row_by_row:
            embedded = [self._masks.mask_embedder(queries) for queries in wanted.split(counts)]
        else:
            embedded = list(self._masks.mask_embedder(wanted).split(counts))
        at_once = 1 if self.row_by_row else _MASK_PAIRS
        out = [states.new_zeros((0, *self._mask_size(states)), dtype=torch.float32)]
        fine: dict[int, list[Tensor]] = {}
        for start in range(0, len(active), at_once):
            some = active[start : start + at_once]
            frames = [int(frame[b]) for b in some]
            seen = tuple(_rows(column, some) for column in (decoded.memory, text, mask))
            if self._recorded_pixels is not None:
                pixels = self._recorded(self._recorded_pixels, states, frames, seen)
            else:
                fine = {f: fine.get(f) or self._fine(states[f : f + 1]) for f in dict.fromkeys(frames)}
                levels = [torch.cat(level) for level in zip(*(fine[f] for f in frames), strict=True)]
                pixels = self._pixels(levels, *seen)
            for row, one in zip(pixels, embedded[start : start + at_once], strict=True):
                out.append((one @ row.flatten(1)).unflatten(1, row.shape[-2:]).float())
        return torch.cat(out)

    def _recorded(
        self, run: Callable[..., tuple[Tensor, ...]], states: Tensor, frames: list[int], seen: tuple[Tensor, ...]
    ) -> Tensor:
        """:meth:`_pixels_of` on batches of a few sizes; ``frames`` of the pairs ``seen``, ascending."""
        wanted = list(dict.fromkeys(frames))
        of = upload(np.array([wanted.index(f) for f in frames]), states.device)
        num_frames, num_pairs = bucket(len(wanted), _MASK_PAIRS), bucket(len(frames), _MASK_PAIRS)
        given = (padded(part, num_pairs) for part in (of, *seen))
        (pixels,) = run(padded(_rows(states, wanted), num_frames), *given)
        return pixels[: len(frames)]

    def _pixels_of(self, states: Tensor, of: Tensor, memory: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor]:
        """:meth:`_pixels` of B pairs whose frames are rows ``of`` ``(B,)`` of ``states``."""
        return (self._pixels([level[of] for level in self._fine(states)], memory, text, mask),)

    def _fine(self, states: Tensor) -> list[Tensor]:
        """The neck's levels above the encoder's resolution, finest first."""
        image = _as_image(states)
        return [layer(image) for layer in self._neck.fpn_layers[:-2]]

    def _mask_size(self, states: Tensor) -> tuple[int, int]:
        side = round(self._neck.fpn_layers[0].scale_factor * math.isqrt(states.shape[1]))
        return side, side

    def _pixels(self, levels: list[Tensor], memory: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Per-pixel embeddings ``(b, C, H, W)`` that a mask is a product with."""
        head, tokens = self._masks, text.to(self.dtype)
        bias = torch.where(mask, 0.0, torch.finfo(self.dtype).min).to(self.dtype)[:, None, None]
        normed = head.prompt_cross_attn_norm(memory)
        memory = memory + head.prompt_cross_attn(query=normed, key=tokens, value=tokens, attention_mask=bias)[0]
        pixels: Tensor = head.instance_projection(head.pixel_decoder([*levels, _as_image(memory)]))
        return pixels


def _rows(batch: Tensor, rows: list[int]) -> Tensor:
    """These rows; the batch itself if it is all of them."""
    return batch if rows == list(range(len(batch))) else batch[upload(np.array(rows), batch.device)]


def _as_image(states: Tensor) -> Tensor:
    """``(B, h*w, C)`` to ``(B, C, h, w)``; pictures are square."""
    side = math.isqrt(states.shape[1])
    image: Tensor = states.transpose(1, 2).unflatten(2, (side, side))
    return image
