"""The embedded target's shape, how it grows, and the losses it is pre-trained with.

Letters: ``b`` images or conversations, ``t`` positions, ``v`` visual tokens, ``d`` hidden size,
``L`` layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vispec.training.conversations import IGNORED, Batch


@dataclass(frozen=True)
class TargetShape:
    """The sizes of a target; the defaults are the embedded one (about 19 M parameters)."""

    vocabulary: int = 4096
    width: int = 192
    heads: int = 3
    mlp: int = 512
    layers: int = 32
    tower_layers: int = 8
    tower_mlp: int = 768
    image_size: int = 192
    patch: int = 16

    @property
    def visual_tokens(self) -> int:
        return (self.image_size // self.patch) ** 2


def build_target(
    shape: TargetShape, tokens: Mapping[str, int], layers: int
) -> LlavaForConditionalGeneration:
    """A freshly initialised LLaVA-1.5 of the given shape with ``layers`` decoder layers.

    Args:
        tokens: ids of ``bos``, ``eos``, ``pad`` and ``image``.
    """
    special = {
        "bos_token_id": tokens["bos"],
        "eos_token_id": tokens["eos"],
        "pad_token_id": tokens["pad"],
    }
    tower = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.tower_mlp,
        projection_dim=shape.width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch,
    )
    decoder = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=2048,
        initializer_range=0.04,
        tie_word_embeddings=False,
        **special,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=decoder,
            image_token_index=tokens["image"],
            image_seq_length=shape.visual_tokens,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
            **special,
        )
    )
    place = model.model.vision_tower.get_submodule("embeddings").position_embedding.weight
    with torch.no_grad():
        place[1:] = grid_code(shape.image_size // shape.patch, shape.width)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=128, **special)
    return model


def grid_code(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, ``[side * side, width]``: where positions start from.

    Neighbouring patches are alike in it, so that attention can find them from the first step.
    """
    # On the CPU by name: a model built under another default device still gets real numbers.
    frequencies = 2.0 ** -torch.linspace(0, 5, width // 4, device="cpu")
    angles = torch.arange(side, device="cpu")[:, None] * frequencies * 1.5
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=2).flatten(0, 1)


def grow(model: LlavaForConditionalGeneration, factor: int) -> LlavaForConditionalGeneration:
    """A deeper copy: behind every decoder layer stand new ones that add nothing yet.

    A new layer's output projections are zero, so that the grown model computes the same function;
    its other matrices mix its neighbour's with noise of the same size, so that the new layers of
    one neighbour start different from each other.

    Args:
        factor: how many times as many layers.
    """
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers *= factor
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = None
    grown = LlavaForConditionalGeneration(config).to(next(model.parameters()).dtype)
    grown.generation_config = copy.deepcopy(model.generation_config)
    inside = "language_model.layers."
    states = {k: v for k, v in model.state_dict().items() if inside not in k}
    missing, unexpected = grown.load_state_dict(states, strict=False)
    if unexpected or any(inside not in name for name in missing):
        raise RuntimeError(f"growing lost parameters: {unexpected or missing}")
    sources = model.model.language_model.layers
    for i, layer in enumerate(grown.model.language_model.layers):
        layer.load_state_dict(sources[i // factor].state_dict())
        if i % factor:
            _silence(layer)
    return grown


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    for name, weight in layer.named_parameters():
        if "o_proj." in name or "down_proj." in name:
            weight.zero_()
        elif weight.ndim == 2:
            noise = torch.randn_like(weight) * weight.std()
            weight.copy_((weight + noise) / 2**0.5)


@torch.no_grad()
def calibrate_projector(model: LlavaForConditionalGeneration, images: Tensor) -> None:
    """Set the projector so that visual tokens arrive centred and at the scale of words.

    A pre-trained tower's last states share a large constant; passed on as they are, they reach the
    decoder hundreds of times larger than word embeddings and nearly equal to each other, and no
    layer can tell them apart or add to them.

    Args:
        images: ``[b, size, size, 3]`` uint8, a sample of what will be seen.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    states = tower(normalise(images), output_hidden_states=True).hidden_states[-1][:, 1:]
    states = states.flatten(0, 1).float()
    mean, spread = states.mean(0), states.std(0).clamp(min=1e-4)
    first, second = projector.linear_1, projector.linear_2
    nn.init.normal_(first.weight, std=first.in_features**-0.5)
    first.weight.div_(spread)
    first.bias.copy_(-first.weight @ mean)
    nn.init.normal_(second.weight, std=second.in_features**-0.5)
    second.bias.zero_()
    out = projector(states)
    scale = model.get_input_embeddings().weight.std() / out.std(0).mean()
    second.weight.mul_(scale)
    second.bias.copy_(-out.mean(0) * scale)


def normalise(images: Tensor) -> Tensor:
    """``[b, size, size, 3]`` uint8 to ``[b, 3, size, size]`` float32, as the processor does."""
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=images.device) * 255
    std = torch.tensor(OPENAI_CLIP_STD, device=images.device) * 255
    return ((images.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


def answer_loss(
    model: LlavaForConditionalGeneration, batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the labelled tokens; the head runs on the labelled positions alone."""
    if batch.images is None:
        hidden = model.model.language_model(input_ids=batch.ids, use_cache=False)
    else:
        device = batch.ids.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else model.dtype
        hidden = model.model(
            input_ids=batch.ids,
            pixel_values=normalise(batch.images),
            position_ids=batch.positions(),
            attention_mask=batch.mask(dtype),
            use_cache=False,
        )
    keep = batch.labels != IGNORED
    logits = model.lm_head(hidden.last_hidden_state[keep]).float()
    wanted = batch.labels[keep]
    right = (logits.detach().argmax(-1) == wanted).float().mean()
    return functional.cross_entropy(logits, wanted), {"accuracy": right.item()}


def compile_layers(model: LlavaForConditionalGeneration) -> None:
    """Compile every layer of tower and decoder in place; parameters keep their names.

    Two to three times as fast on a CPU: between the matrix products of so narrow a model most time
    goes to small operations, which compiling fuses. There, attention is spelled out for the
    compiler, whose backward pass is faster than that of the fused operator.
    """
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    for name, module in model.named_modules():
        if name.rpartition(".")[0].endswith(".layers"):
            module.compile(dynamic=False)
