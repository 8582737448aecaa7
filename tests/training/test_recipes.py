"""Every recipe of a published target, on a tiny model of its target's architecture.

The sizes are small, and two steps are taken of every stage. All else is the recipe's: datasets are
asked for by their names, and rows have the columns of the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import families
import talking
from targets.test_processors import processor
from vispec.adapters import QueryAdapter
from vispec.decoding.engine import Engine
from vispec.loading_drafts import load_draft
from vispec.targets import Target, wrap
from vispec.training import pipeline
from vispec.training.distill import Question
from vispec.training.recipe import RECIPES, Recipe, read_recipe

datasets = pytest.importorskip("datasets")
CONVERSATIONS = [{"from": datasets.Value("string"), "value": datasets.Value("string")}]


def model(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """Of a family, for a tokenizer with all bytes."""
    (family,) = (one for one in families.FAMILIES if one.name == name)
    config = transformers.AutoConfig.for_model(**family.config)
    text = config.text_config
    text.vocab_size, text.max_position_embeddings = 320, 2048
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    made = families.auto_class(config.model_type).from_config(config, attn_implementation="sdpa")
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    made.generation_config.eos_token_id = families.EOS
    made.generation_config.pad_token_id = 0
    return made.float().eval()


def llava() -> Target:
    return talking.target(torch.float32, max_position_embeddings=2048)


def llava_next() -> Target:
    reads = processor("llava_next")
    images, reads.patch_size = reads.image_processor, 4
    images.size, images.crop_size = {"shortest_edge": 12}, {"height": 12, "width": 12}
    images.image_grid_pinpoints = families.GRID["image_grid_pinpoints"]
    number = reads.tokenizer.image_token_id
    return wrap(model("llava_next, vicuna", image_token_index=number), reads)


def qwen(name: str) -> Target:
    reads = processor(name)
    images, tokenizer = reads.image_processor, reads.tokenizer
    images.patch_size, images.merge_size, images.temporal_patch_size = 4, 2, 2
    images.size = {"shortest_edge": 8 * 8, "longest_edge": 24 * 24}
    marks = {
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.vision_start_token_id,
        "vision_end_token_id": tokenizer.vision_end_token_id,
    }
    return wrap(model(name, **marks), reads)


TARGETS: dict[str, Callable[[], Target]] = {
    "llava-1.5-7b": llava,
    "llava-next-7b": llava_next,
    "qwen2.5-vl-3b": lambda: qwen("qwen2_5_vl"),
    "qwen2.5-vl-7b": lambda: qwen("qwen2_5_vl"),
    "qwen3-vl-8b": lambda: qwen("qwen3_vl"),
}


def test_every_recipe_of_a_published_target_is_trained_here() -> None:
    # The embedded pair's is, in test_embedded_draft.py.
    assert {path.stem for path in RECIPES.glob("*.toml")} == {
        *TARGETS,
        "embedded",
        "embedded-eagle",
        "embedded-eagle3",
    }


def test_recipes_of_published_targets_differ_where_targets_do() -> None:
    one, *others = (read_recipe(RECIPES / f"{name}.toml") for name in TARGETS)
    for other in others:
        assert other.target != one.target
        adapter = {**one.draft.adapter, "heads": other.draft.adapter["heads"]}
        like = replace(one, target=other.target, draft=replace(one.draft, adapter=adapter))
        assert other == like


def published(name: str, config: str | None = None, *, split: str) -> Any:
    """Rows as those of the two datasets: conversations, and pictures where it has any."""
    assert split == "train"
    conversations = [
        [{"from": "human", "value": f"what is {i} ?"}, {"from": "gpt", "value": "it is"}]
        for i in range(8)
    ]
    if name == "Aeala/ShareGPT_Vicuna_unfiltered":
        rows = [{"id": f"s{i}", "conversations": c} for i, c in enumerate(conversations)]
        features = {"id": datasets.Value("string"), "conversations": CONVERSATIONS}
    else:
        assert (name, config) == ("lmms-lab/LLaVA-OneVision-Data", "sharegpt4v(coco)")
        rows = [
            {"id": f"o{i}", "image": talking.picture(i), "conversations": c, "data_source": "coco"}
            for i, c in enumerate(conversations)
        ]
        features = {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": CONVERSATIONS,
            "data_source": datasets.Value("string"),
        }
    return datasets.Dataset.from_list(rows, datasets.Features(features))


def small(whole: Recipe) -> Recipe:
    """The recipe, with fewer rows, tokens and steps."""
    assert isinstance(whole.draft.adapter, dict)
    return replace(
        whole,
        max_new_tokens=6,
        max_batch=3,
        data={
            name: replace(source, first=4 * (name == "heldout"), limit=4)
            for name, source in whole.data.items()
        },
        draft=replace(whole.draft, adapter={**whole.draft.adapter, "heads": 4}),
        stages=[replace(stage, steps=2, batch=2, bf16=False) for stage in whole.stages],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_recipe_trains_a_draft_of_its_architecture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[name]()
    monkeypatch.setattr(datasets, "load_dataset", published)
    monkeypatch.setattr(pipeline, "load_target", lambda *_, **__: target)
    whole = read_recipe(RECIPES / f"{name}.toml")
    assert (
        whole.target.lower()
        .replace("-instruct", "")
        .replace("-hf", "")
        .endswith(name.replace("llava-next", "llava-v1.6-vicuna"))
    )
    found = pipeline.train(small(whole), tmp_path)
    assert found["acceptance_length"] >= 1
    # Both stages saw answers to what the datasets ask.
    for source, count in (("text", 4), ("multimodal", 4), ("heldout", 4)):
        assert len(list((tmp_path / "answers" / source).glob("*.parquet"))) >= 1
        assert count == len(pipeline.read_answers(tmp_path / "answers" / source))
    draft, _ = load_draft(tmp_path / "draft", target)
    assert isinstance(getattr(draft, "adapter", None), QueryAdapter)
    question = Question("q", "what is it ?", [talking.picture(30)])
    plain, ours = (
        Engine(target, chosen).generate([question.request(12, 0)])[0] for chosen in (None, draft)
    )
    assert ours.token_ids == plain.token_ids
    assert question.encode(target).inputs.keys() >= {"input_ids", "pixel_values"}
