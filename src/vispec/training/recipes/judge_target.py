"""Judge a trained target on held-out scenes and photographs, and write its model card.

    python -m vispec.training.recipes.judge_target \\
        --model /tmp/target/model --work /tmp/target --data ../shared/data

Reads ``<work>/<phase>/log.jsonl`` for what the training did, lets the model answer held-out
questions greedily, and leaves ``README.md`` and ``heldout.json`` in the model's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vispec.training import photos, scenes
from vispec.training.conversations import Encoder
from vispec.training.image_cache import ImageCache
from vispec.training.recipes.card import training_of
from vispec.training.recipes.embedded_target import PHASES, heldout_losses, scene_seeds

CARD = """# The embedded target

A small LLaVA-1.5 ({parameters:.1f} M parameters: a CLIP tower of {tower} layers, a Llama decoder of
{layers} layers of width {width}, {visual} visual tokens an image) trained from scratch by
`vispec.training.recipes.embedded_target`, so that every part of the project has a real model to
run. It is narrow and as deep as real models, because speculative decoding lives on depth.

**For research use only: trained partly on research-only photographs (Flickr8k, DAQUAR).**

## Data

* rendered scenes and pages (`vispec.training.scenes`), made by the project;
* Flickr8k photographs with captions and DAQUAR questions: research use only;
* public-domain English prose (Project Gutenberg) for the text phase.

Held out: one scene seed and one image name in twenty, by hash; everything below is measured on
those.

## Training

{training}{note}

## Measured

Cross entropy of an answer token (nats), varied questions:

{losses}

Greedy answers on held-out scenes and photographs ({count} a task):

{scores}

## Limits

It is tiny and was trained briefly on two CPU cores; the numbers above and the samples below say how
much it sees. It knows coloured shapes, rendered words and everyday photographs, answers in English
only, and is confidently wrong about the rest. Its purpose is to exercise software; do not rely on
what it says.

## Samples

{samples}
"""


@dataclass(frozen=True)
class Question:
    """One held-out question with the true answer."""

    image: Image.Image
    question: str
    answer: str
    task: str


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained target")
    parser.add_argument("--work", type=Path, required=True, help="work folder of its training")
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/")
    parser.add_argument("--count", type=int, default=48, help="questions a task")
    parser.add_argument("--note", default="", help="what else to say of this run in the card")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    model = AutoModelForImageTextToText.from_pretrained(given.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(given.model)
    asked = held_out_questions(given.data, given.count)
    said = [text for i in range(0, len(asked), 16)
            for text in answer(model, processor, asked[i : i + 16])]  # fmt: skip
    scores = score(asked, said)
    encoder = Encoder(processor.tokenizer, model.config.image_seq_length)
    with torch.no_grad():
        losses = heldout_losses(model, encoder, ImageCache.open(given.work / "heldout"))
    samples = [
        {"task": q.task, "question": q.question, "true": q.answer, "said": text}
        for q, text in zip(asked, said, strict=True)
    ]
    report = {"losses": losses, "scores": scores, "samples": samples}
    (given.model / "heldout.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    card = write_card(model, given.work, given.count, losses, scores, samples, given.note)
    (given.model / "README.md").write_text(card)
    print(card)


def held_out_questions(data: Path, count: int) -> list[Question]:
    """``count`` questions of every task; photographs only where the data folder has them."""
    found = []
    for task in scenes.TASKS:
        for seed in scene_seeds("heldout", count):
            sample = scenes.scene(seed, task)
            found.append(Question(sample.image, sample.question, sample.answer, task))
    if (data / "flickr8k").is_dir():
        for photo in photos.load(data, "flickr8k", "heldout")[:count]:
            turn = photo.turns[0]
            found.append(Question(photo.open(scenes.SIZE), turn.question, turn.answer, "photo"))
    return found


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: Sequence[Question]
) -> list[str]:
    """The model's greedy answers, all questions in one batch."""
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q.question}]}]
        for q in asked
    ]
    text = [processor.apply_chat_template(chat, add_generation_prompt=True)[3:] for chat in chats]
    inputs = processor(
        images=[q.image for q in asked], text=text, padding=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=112, do_sample=False)
    fresh = output[:, inputs["input_ids"].shape[1] :]
    return [t.strip() for t in processor.tokenizer.batch_decode(fresh, skip_special_tokens=True)]


def score(asked: Sequence[Question], said: Sequence[str]) -> dict[str, float]:
    """How right the answers on scenes are; a character of the text costs one edit when misread."""
    scores: dict[str, float] = {}
    for task in scenes.TASKS:
        pairs = [(q, text) for q, text in zip(asked, said, strict=True) if q.task == task]
        if task == "vqa":
            scores["vqa_exact"] = sum(q.answer == text for q, text in pairs) / len(pairs)
        elif task == "caption":
            words = [_overlap(q.answer.split(), text.split()) for q, text in pairs]
            scores["caption_word_overlap"] = sum(words) / len(words)
        else:
            quoted = [(_quoted(q.answer), _quoted(text)) for q, text in pairs]
            wrong = sum(min(len(true), distance(true, read)) for true, read in quoted)
            scores["read_exact"] = sum(true == read for true, read in quoted) / len(pairs)
            scores["read_character_accuracy"] = 1 - wrong / sum(len(true) for true, _ in quoted)
    return scores


def _quoted(text: str) -> str:
    return text.split('"')[1] if text.count('"') >= 2 else text.strip(" .")


def _overlap(true: list[str], said: list[str]) -> float:
    """Share of words in the same place, counted over the longer of the two texts."""
    longest = max(len(true), len(said))
    return sum(a == b for a, b in zip(true, said, strict=False)) / longest


def distance(one: str, two: str) -> int:
    """Edit distance (Levenshtein) between two strings."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def write_card(
    model: LlavaForConditionalGeneration,
    work: Path,
    count: int,
    losses: dict[str, float],
    scores: dict[str, float],
    samples: list[dict[str, str]],
    note: str = "",
) -> str:
    """The text of the model card."""
    shown = []
    for task in (*scenes.TASKS, "photo"):
        for sample in [s for s in samples if s["task"] == task][:5]:
            shown.append(
                f"* *{task}* {sample['question']}\n  * true: {sample['true']}\n"
                f"  * said: {sample['said']}"
            )
    text = model.config.text_config
    return CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        tower=model.config.vision_config.num_hidden_layers,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        visual=model.config.image_seq_length,
        training=training_of(work, PHASES),
        note=f"\n\n{note}" if note else "",
        losses="\n".join(
            f"* {name.removeprefix('heldout_')}: {value:.3f}" for name, value in losses.items()
        ),
        count=count,
        scores="\n".join(
            f"* {name.replace('_', ' ')}: {value:.3f}" for name, value in scores.items()
        ),
        samples="\n".join(shown),
    )


if __name__ == "__main__":
    main()
