"""Tiny random models of every family, and prompts for them.

A family is its real configuration and model classes at small size. A new one takes a line in
`FAMILIES`; `tests/targets/test_conformance.py` then asks of it what it asks of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from vispec.targets import Target, auto_class, wrap

VOCAB, EOS = 64, 2
TEXT = range(3, 50)
"""Tokens that questions are made of."""
TILE, ROW, WHOLE, STAMP, START, END, IMAGE, VIDEO, FIRST, NEXT = range(52, 62)

TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {**CLIP, "model_type": "pixtral", "image_size": 32, "head_dim": 8}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "out_hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
GRID = {"image_grid_pinpoints": [[12, 24], [24, 12]]}

Pixels = dict[str, Tensor]
Layout = Callable[[int, Pixels], list[int]]
"""`(placeholders, pixels) -> tokens` of one image or video."""


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _either(generator: torch.Generator) -> bool:
    return bool(torch.rand(1, generator=generator) < 0.5)


# --- Pixels of one image or video, as the families' processors give them ------------------------


def square(generator: torch.Generator) -> Pixels:
    return {"pixel_values": _normal(generator, 1, 3, 12, 12)}


def wide_or_tall(generator: torch.Generator) -> Pixels:
    size = [12, 24] if _either(generator) else [24, 12]
    pixels = _normal(generator, 1, 3, 3, 12, 12)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


def clip_video(generator: torch.Generator) -> Pixels:
    return {"pixel_values_videos": _normal(generator, 1, 4, 3, 12, 12)}


def patches(generator: torch.Generator) -> Pixels:
    grid = [1, 4, 4] if _either(generator) else [1, 2, 6]
    pixels = _normal(generator, grid[1] * grid[2], 3 * 2 * 4 * 4)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])}


def patch_video(generator: torch.Generator) -> Pixels:
    grid = [3, 2, 4] if _either(generator) else [2, 4, 4]
    pixels = _normal(generator, grid[0] * grid[1] * grid[2], 3 * 2 * 4 * 4)
    return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([grid])}


def tiles(generator: torch.Generator) -> Pixels:
    return {"pixel_values": _normal(generator, 3 if _either(generator) else 1, 3, 16, 16)}


def tile_frames(generator: torch.Generator) -> Pixels:
    return {"pixel_values": _normal(generator, 3 if _either(generator) else 2, 3, 16, 16)}


def row_of_frames(generator: torch.Generator) -> Pixels:
    return {"pixel_values": tile_frames(generator)["pixel_values"][None]}


def row_of_tiles(generator: torch.Generator) -> Pixels:
    return {"pixel_values": tiles(generator)["pixel_values"][None]}


def siglip_square(generator: torch.Generator) -> Pixels:
    return {"pixel_values": _normal(generator, 1, 3, 16, 16)}


def sized(generator: torch.Generator) -> Pixels:
    size = [16, 16] if _either(generator) else [8, 16]
    pixels = _normal(generator, 1, 3, 16, 16)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([size])}


def placed(generator: torch.Generator) -> Pixels:
    height, width = (4, 4) if _either(generator) else (2, 8)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.rand(1, 16, 12, generator=generator, dtype=torch.float64)
    places = torch.stack([x, y], -1).view(1, 16, 2)
    return {"pixel_values": pixels, "image_position_ids": places}


def placed_video(generator: torch.Generator) -> Pixels:
    frames = [placed(generator) for _ in range(2)]
    return {
        "pixel_values_videos": torch.cat([f["pixel_values"] for f in frames]),
        "video_position_ids": torch.cat([f["image_position_ids"] for f in frames]),
        "num_frames_per_video": torch.tensor([2]),
    }


def naflex(generator: torch.Generator) -> Pixels:
    n = 3 if _either(generator) else 1
    return {
        "pixel_values": _normal(generator, n, 16, 12),
        "spatial_shapes": torch.tensor([[4, 4]] * n),
        "pixel_attention_mask": torch.ones(n, 16, dtype=torch.long),
    }


# --- How they lie in a prompt ---------------------------------------------------------------------


def bare(count: int, pixels: Pixels) -> list[int]:
    return [VIDEO if "pixel_values_videos" in pixels else IMAGE] * count


def between(count: int, pixels: Pixels) -> list[int]:
    return [START, *bare(count, pixels), END]


def rows(count: int, pixels: Pixels, size: int = 8) -> list[int]:
    """Rows of an image whose tokens are `size` pixels high."""
    height = int(pixels["image_sizes"][0, 0]) // size
    row = [IMAGE] * (count // height)
    tokens = [token for _ in range(height) for token in [*row, ROW]]
    return [*tokens[:-1], END]


def stamped(count: int, pixels: Pixels) -> list[int]:
    frames = int(pixels["video_grid_thw"][0, 0])
    return [
        t for i in range(frames) for t in [STAMP, 3 + i, START, *[VIDEO] * (count // frames), END]
    ]


def stamped_images(count: int, pixels: Pixels) -> list[int]:
    """GLM's video frames have the placeholder of images."""
    frames = stamped(count, pixels)
    return [IMAGE if token == VIDEO else token for token in frames]


def frames(count: int, pixels: Pixels) -> list[int]:
    """Frames that are images like any other, behind words that tell which they are."""
    n = pixels["pixel_values"].shape[-4]
    one = between(count // n, pixels)
    return [FIRST, *one, *[NEXT, *one] * (n - 1)]


def whole_frames(count: int, pixels: Pixels) -> list[int]:
    n = pixels["pixel_values"].shape[-4]
    one = [START, WHOLE, *[IMAGE] * (count // n), START]
    return [FIRST, *one, *[NEXT, *one] * (n - 1)]


def tile_rows(count: int, pixels: Pixels) -> list[int]:
    n = pixels["pixel_values"].shape[1]
    one = [IMAGE] * (count // n)
    inner = [token for i in range(n - 1) for token in [START, TILE - 1 + i, *one]]
    return [*inner, START, WHOLE, *one, START]


def tile_marks(count: int, pixels: Pixels) -> list[int]:
    n = pixels["pixel_values"].shape[0]
    one = [IMAGE] * (count // n)
    if n == 1:
        return [START, *one, END]
    inner = [token for i in range(n - 1) for token in [TILE - 1 + i, *one]]
    return [START, *inner, WHOLE, *one, END]


# --- The families ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Family:
    """One row of the table.

    Attributes:
        name: as people know it.
        config: of the model, as its `config.json` has it.
        image: pixels of one image, and how it lies in a prompt; None for text models.
        video: the same for a video.
        marks: the input that tells placeholders from text, where the model takes one.
        along: the axis on which the pixels of several images are joined.
        words: what `FIRST` and `NEXT` say, where frames of a video are told by words.
    """

    name: str
    config: dict[str, Any]
    image: tuple[Callable[[torch.Generator], Pixels], Layout] | None = None
    video: tuple[Callable[[torch.Generator], Pixels], Layout] | None = None
    marks: str | None = None
    along: int = 0
    words: tuple[str, str] | None = None

    def target(self) -> Target:
        """The model wrapped, with as much of a processor as is needed."""
        if self.words is None:
            return wrap(self.model(), None)
        said = dict(zip((FIRST, NEXT), self.words, strict=True))
        tokenizer = SimpleNamespace(decode=lambda ids: " ".join(said.get(i, "x") for i in ids))
        return wrap(self.model(), SimpleNamespace(tokenizer=tokenizer))

    @property
    def options(self) -> dict[str, Any]:
        """Of loading: mixtures of experts compute in float64 with one implementation only."""
        is_mixture = "experts" in str(self.config)
        return {"experts_implementation": "eager"} if is_mixture else {}

    @functools.cache  # noqa: B019 - there are few families, and they live as long as the tests
    def model(self, seed: int = 0) -> PreTrainedModel:
        """In float64, its weights large enough that contexts differ."""
        torch.manual_seed(seed)
        config = AutoConfig.for_model(**self.config)
        loader = auto_class(self.config["model_type"])
        model = loader.from_config(config, attn_implementation="sdpa", **self.options)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.generation_config.eos_token_id = EOS
        model.generation_config.pad_token_id = 0
        return model.to(torch.float64).eval()

    def prompt(
        self, generator: torch.Generator, shown: Sequence[str] = (), text: int = 6
    ) -> dict[str, Tensor]:
        """A random question with the images and videos that `shown` names."""
        return self.prompt_and_counts(generator, shown, text)[0]

    def prompt_and_counts(
        self, generator: torch.Generator, shown: Sequence[str] = (), text: int = 6
    ) -> tuple[dict[str, Tensor], list[int]]:
        """A prompt, and how many features the model makes of each image and video in it."""
        model = self.model()
        tokens, pixels, counts = [1], list[Pixels](), list[int]()
        for kind in shown:
            made, layout = getattr(self, kind)
            own = made(generator)
            with torch.no_grad():
                modality = "video" if "pixel_values_videos" in own else "image"
                encode = getattr(model.base_model, f"get_{modality}_features")
                output = encode(**own, return_dict=True).pooler_output
            count = sum(len(features) for features in output)
            counts.append(count)
            tokens += [*_words(generator, text // 2), *layout(count, own)]
            pixels.append(own)
        tokens += _words(generator, text)
        inputs = {"input_ids": torch.tensor([tokens])}
        if self.marks:
            inputs[self.marks] = torch.tensor([self._kinds(tokens, shown)])
        for name in dict.fromkeys(name for own in pixels for name in own):
            along = self.along if name.startswith("pixel") else 0
            inputs[name] = torch.cat([own[name] for own in pixels if name in own], along)
        return inputs, counts

    def _kinds(self, tokens: Sequence[int], shown: Sequence[str]) -> list[int]:
        only_videos = self.video is not None and self.video[1] is stamped_images
        image = 2 if only_videos and "video" in shown else 1
        return [{IMAGE: image, VIDEO: 2}.get(token, 0) for token in tokens]

    def batch(self, prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Several prompts as one batch, padded on the left."""
        longest = max(p["input_ids"].shape[1] for p in prompts)
        joined: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for p in prompts for name in p):
            own = [p[name] for p in prompts if name in p]
            if name in ("input_ids", self.marks):
                own = [torch.nn.functional.pad(t, (longest - t.shape[1], 0)) for t in own]
            elif self.along and name == "pixel_values":
                most = max(t.shape[1] for t in own)
                own = [
                    torch.nn.functional.pad(t, (0, 0) * (t.ndim - 2) + (0, most - t.shape[1]))
                    for t in (
                        p.get(name, own[0].new_zeros(1, 0, *own[0].shape[2:])) for p in prompts
                    )
                ]
            joined[name] = torch.cat(own)
        joined["attention_mask"] = (joined["input_ids"] != 0).long()
        return joined


def _words(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(TEXT.start, TEXT.stop, (count,), generator=generator).tolist()


def _llava(model_type: str, vision: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vision_config": vision,
        "text_config": {"model_type": text} | TEXT_CONFIG,
        "image_token_index": IMAGE,
    } | more


def _qwen(model_type: str, vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vision_config": QWEN_VISION | vision,
        "text_config": TEXT_CONFIG | {"rope_parameters": MROPE} | text,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


_DEEP = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
_QWEN3 = {"head_dim": 8, "rope_parameters": MROPE | {"mrope_interleaved": True}}
_QWEN35 = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "rope_parameters": MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 0.5},
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_GLM = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": MROPE | {"partial_rotary_factor": 0.5},
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GEMMA3 = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "final_logit_softcapping": 5.0,
}
_TEXT_ONLY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "gemma3_text": _GEMMA3,
}

FAMILIES = [
    *(Family(name, {"model_type": name} | TEXT_CONFIG | own) for name, own in _TEXT_ONLY.items()),
    Family("mistral, sliding", {"model_type": "mistral", "sliding_window": 7} | TEXT_CONFIG),
    Family("llava", _llava("llava", CLIP, "llama"), (square, bare)),
    Family(
        "llava, pixtral",
        _llava(
            "llava",
            PIXTRAL,
            "mistral",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        (sized, functools.partial(rows, size=4)),
    ),
    Family("llava_next, vicuna", _llava("llava_next", CLIP, "llama", **GRID), (wide_or_tall, bare)),
    Family(
        "llava_next, mistral", _llava("llava_next", CLIP, "mistral", **GRID), (wide_or_tall, bare)
    ),
    Family(
        "llava_onevision",
        _llava("llava_onevision", SIGLIP, "qwen2", video_token_index=VIDEO, **GRID),
        (wide_or_tall, bare),
        (clip_video, bare),
    ),
    Family(
        "llava_next_video",
        _llava("llava_next_video", CLIP, "llama", video_token_index=VIDEO, **GRID),
        (wide_or_tall, bare),
        (clip_video, bare),
    ),
    Family(
        "video_llava",
        _llava("video_llava", CLIP, "llama", video_token_index=VIDEO),
        (square, bare),
        (clip_video, bare),
    ),
    Family(
        "mistral3",
        _llava("mistral3", PIXTRAL, "mistral", spatial_merge_size=2),
        (sized, rows),
    ),
    Family(
        "internvl",
        {
            "model_type": "internvl",
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": [16, 16],
                "patch_size": [4, 4],
            },
            "text_config": {"model_type": "qwen2"} | TEXT_CONFIG,
            "image_token_id": IMAGE,
            "image_seq_length": 4,
        },
        (tiles, between),
        (tile_frames, frames),
        words=("Frame1: ", "Frame2: "),
    ),
    Family(
        "gemma3",
        {
            "model_type": "gemma3",
            "vision_config": SIGLIP | {"image_size": 16},
            "text_config": TEXT_CONFIG | _GEMMA3,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
        },
        (siglip_square, between),
        marks="token_type_ids",
    ),
    Family(
        "gemma4",
        {
            "model_type": "gemma4",
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "pooling_kernel_size": 2,
                "patch_size": 2,
                "position_embedding_size": 16,
            },
            "text_config": TEXT_CONFIG
            | {
                "num_hidden_layers": 4,
                "head_dim": 8,
                "global_head_dim": 16,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_kv_shared_layers": 2,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": VOCAB,
                "use_bidirectional_attention": "vision",
                "final_logit_softcapping": 5.0,
            },
            "audio_config": None,
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "boi_token_id": START,
            "eoi_token_id": END,
            "audio_token_id": 62,
            "boa_token_id": 61,
            "eoa_token_index": 63,
        },
        (placed, between),
        (placed_video, between),
        marks="mm_token_type_ids",
    ),
    *(
        Family(
            name,
            {
                "model_type": name,
                "vision_config": {
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "image_size": 16,
                    "patch_size": 4,
                },
                "text_config": {"model_type": "llama"} | TEXT_CONFIG,
                "image_token_id": IMAGE,
                "scale_factor": 2,
            },
            (row_of_tiles, tile_rows),
            video,
            along=1,
            words=("the following series of frames:\nFrame from 00:01:", "\nFrame from 00:01:"),
        )
        for name, video in (("idefics3", None), ("smolvlm", (row_of_frames, whole_frames)))
    ),
    Family(
        "lfm2_vl",
        {
            "model_type": "lfm2_vl",
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_patches": 16,
                "patch_size": 2,
                "vision_use_head": False,
            },
            "text_config": TEXT_CONFIG
            | {
                "model_type": "lfm2",
                "num_hidden_layers": 4,
                "layer_types": ["conv", "full_attention", "conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
            },
            "image_token_id": IMAGE,
            "projector_hidden_size": 32,
        },
        (naflex, tile_marks),
    ),
    *(
        Family(
            name, _qwen(name, vision, text), (patches, between), (patch_video, video), marks=marks
        )
        for name, vision, text, video, marks in (
            ("qwen2_vl", {"embed_dim": 32, "mlp_ratio": 2}, {}, between, "mm_token_type_ids"),
            (
                "qwen2_5_vl",
                {"window_size": 16, "fullatt_block_indexes": [1]},
                {},
                between,
                "mm_token_type_ids",
            ),
            ("qwen3_vl", _DEEP, _QWEN3, stamped, "mm_token_type_ids"),
            (
                "qwen3_vl_moe",
                _DEEP,
                _QWEN3 | _EXPERTS,
                stamped,
                "mm_token_type_ids",
            ),
            ("qwen3_5", {"num_position_embeddings": 64}, _QWEN35, stamped, "mm_token_type_ids"),
            (
                "qwen3_5_moe",
                {"num_position_embeddings": 64},
                _QWEN35 | _EXPERTS | {"shared_expert_intermediate_size": 16},
                stamped,
                "mm_token_type_ids",
            ),
            ("glm4v", {"image_size": 32}, _GLM, stamped_images, "mm_token_type_ids"),
            (
                "glm4v_moe",
                {"image_size": 32},
                _GLM
                | {
                    "n_routed_experts": 4,
                    "n_shared_experts": 1,
                    "num_experts_per_tok": 2,
                    "moe_intermediate_size": 16,
                    "first_k_dense_replace": 1,
                },
                stamped_images,
                "mm_token_type_ids",
            ),
            ("glm46v", {"image_size": 32}, _GLM, stamped_images, "mm_token_type_ids"),
        )
    ),
]
