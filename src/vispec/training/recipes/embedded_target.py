"""Train the embedded target: a small, narrow and deep LLaVA that describes, answers and reads.

Four phases, each cheap where it can be (their shares of the time in ``PHASES``):

1. *tower*: the vision tower alone names what every patch of a crowded page shows, and the words
   of a photograph's captions;
2. *text*: a decoder of a quarter of the depth learns the language of questions and answers;
3. *joined*: this tower, a projector and that decoder together, loss on the answers and on the
   characters and forms that patches show;
4. *grown*: new layers that compute nothing are put behind each trained one, and everything is
   trained at full depth.

    LD_PRELOAD=libtcmalloc_minimal.so.4 GOMP_SPINCOUNT=20000 \\
    python -m vispec.training.recipes.embedded_target \\
        --data DIR --work /tmp/target --out /tmp/target/model

Kill it whenever you like: the same command goes on from the last checkpoint. The image cache,
checkpoints and logs (``<work>/<phase>/log.jsonl``) are kept in the work folder; ``--out`` receives
a model that ``AutoModelForImageTextToText`` and ``AutoProcessor`` load. ``--start MODEL`` trains
such a model on, at full depth and with its own tokenizer, instead of going through the phases.

A GPU takes larger batches and wants other processes to make them::

    python -m vispec.training.recipes.embedded_target --data DIR --work DIR --out DIR \\
        --device cuda --workers 14 --batch 256 --scenes 120000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vispec.checkpoints.files import fingerprint
from vispec.runs import claim
from vispec.training import photos, scenes
from vispec.training.ahead import Ahead
from vispec.training.conversations import Encoder, ImageBatches, TextBatches
from vispec.training.image_cache import ImageCache
from vispec.training.pretrain import (
    TargetShape,
    answer_loss,
    build_target,
    calibrate_projector,
    compile_layers,
    grow,
)
from vispec.training.recipes.card import write_licence
from vispec.training.tokenizer import build_processor, train_tokenizer
from vispec.training.tower import (
    WORDS,
    TowerBatches,
    TowerPretraining,
    heldout_patches,
    patch_loss,
)
from vispec.training.trainer import Loss, Settings, Trainer
from vispec.writing import write_json

PHASES = {"tower": 0.1194, "text": 0.0111, "joined": 0.6746, "grown": 0.1949}
"""Share of the time that each phase gets."""
FURTHER = "further"
"""The phase of a model that is trained on."""
RATES = {"tower": 1.5e-3, "text": 2e-3, "joined": 1.5e-3, "grown": 4e-4, FURTHER: 4e-4}
"""Peak learning rate of each phase."""
PHOTOS = {"joined": 0.39, "grown": 0.51, FURTHER: 0.30}
"""Share of the pictures shown that are photographs."""
SEED, BATCH = 1, 16
FONTS = 20
LONGEST = 160
"""Text positions of a conversation beside its image."""


@dataclass(frozen=True)
class Plan:
    """What to train on, for how long, how large; see ``--help`` for each."""

    data: Path
    work: Path
    out: Path
    minutes: float
    scene_count: int
    batch: int
    seed: int
    shape: TargetShape
    growth: int
    start: Path | None = None
    rate: float = RATES[FURTHER]
    keep: float = 0.0
    device: str = "cpu"
    workers: int = 0
    compiled: bool = False
    phase_steps: int | None = None

    def settings(self, phase: str) -> Settings:
        seconds = None if self.phase_steps else self.minutes * 60 * PHASES.get(phase, 1.0)
        return Settings(
            self.work / phase,
            self.rate if phase == FURTHER else RATES[phase],
            # The grown phase goes on where the one before it ends.
            final_rate=RATES["grown"] / RATES[phase] if phase == "joined" else 0.05,
            budget_s=seconds,
            budget_steps=self.phase_steps,
            checkpoint_s=240,
            evaluate_s=240,
        )


@dataclass(frozen=True)
class Corpus:
    """Everything to learn from, and what is held out to judge by."""

    train: ImageCache
    heldout: ImageCache
    processor: LlavaProcessor
    encoder: Encoder
    passages: list[int]


def main(arguments: Sequence[str] | None = None) -> None:
    plan = _parse(arguments)
    torch.manual_seed(plan.seed)
    corpus = prepare(plan)
    train(plan, corpus)


def prepare(plan: Plan) -> Corpus:
    """Render scenes, decode photographs, train the tokenizer; whatever exists is reused."""
    record_fonts(plan.work)
    counts = {"train": plan.scene_count, "heldout": max(16, min(600, plan.scene_count // 10))}
    train, heldout = (
        ImageCache.build(
            plan.work / part,
            scene_seeds(part, count),
            _pictures(plan.data, part),
            workers=plan.workers,
        )
        for part, count in counts.items()
    )
    books = "\n".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted((plan.data / "text" / "gutenberg").glob("*.txt"))
    )
    tokenizer = _tokenizer(plan, train, books)
    encoder = Encoder(tokenizer, plan.shape.visual_tokens)
    processor = build_processor(tokenizer, plan.shape.image_size, plan.shape.patch)
    return Corpus(train, heldout, processor, encoder, encoder.encode(books))


def record_fonts(work: Path) -> None:
    """Keep which fonts scenes are drawn in; warn where they are too few to learn to read by."""
    names = [Path(path).name for path in scenes.fonts()]
    if len(names) < FONTS:
        print(
            f"warning: scenes are drawn in {len(names)} fonts, and what learns to read by fewer"
            f" than {FONTS} reads no others; CONTRIBUTING.md names packages that have more",
            file=sys.stderr,
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "fonts.json", names)


def _tokenizer(plan: Plan, train: ImageCache, books: str) -> PreTrainedTokenizerFast:
    """That of the model to start from, or one trained on what there is to learn."""
    folder = plan.start or plan.work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        texts = [f" {turn.question} {turn.answer}" for turns in train.turns for turn in turns]
        # Captions and questions first; a little prose for everything else people write.
        texts += [line for line in books[:1_500_000].split("\n") if line.strip()]
        train_tokenizer(texts, plan.shape.vocabulary).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def scene_seeds(part: str, count: int) -> list[int]:
    """The first ``count`` scene seeds of one part."""
    return list(islice(scenes.seeds(part), count))


def rows_of_an_epoch(cache: ImageCache, share: float) -> list[int]:
    """Each scene once, and each photograph as often as comes closest to their share."""
    drawn = sum(source == "scene" for source in cache.sources)
    turns = share / (1 - share) * drawn / max(1, len(cache) - drawn)
    return [
        row
        for row, source in enumerate(cache.sources)
        for _ in range(1 if source == "scene" else max(1, round(turns)))
    ]


def _pictures(data: Path, part: str) -> list[photos.Photo]:
    return [
        photo
        for name in ("flickr8k", "daquar")
        if (data / name).is_dir()
        for photo in photos.load(data, name, part)
    ]


def train(plan: Plan, corpus: Corpus) -> LlavaForConditionalGeneration:
    """Run the phases that are not finished yet and write the model; returns it."""
    if plan.start:
        phase, seed = FURTHER, plan.seed + 2
        facts = {"start": fingerprint(plan.start), "rate": plan.rate, "seed": plan.seed}
        claim(plan.work, {**facts, "batch": plan.batch, "scenes": plan.scene_count})
        model = LlavaForConditionalGeneration.from_pretrained(plan.start, dtype=torch.float32)
    else:
        phase, seed = "grown", plan.seed + 1
        shallow = train_shallow(plan, corpus)
        torch.manual_seed(plan.seed)
        model = grow(shallow, plan.growth)
    model.to(plan.device)
    if plan.compiled:
        compile_layers(model)
    learn_all(plan, corpus, phase, model, seed, lambda m: m)
    if plan.start and plan.keep:
        begun = LlavaForConditionalGeneration.from_pretrained(plan.start, dtype=torch.float32)
        mix(model, begun, plan.keep)
    write(model, corpus.processor, plan.out)
    return model


@torch.no_grad()
def mix(model: nn.Module, other: nn.Module, share: float) -> None:
    """Move every weight of ``model`` towards ``other``'s by a share of the way.

    Between a model and what it became by more training lies one that does nearly as well as either
    where that one does better (WiSE-FT, arXiv 2109.01903): of scenes it knows what the second has
    learnt, and photographs it has not learnt by heart as that one has.
    """
    for weight, towards in zip(model.parameters(), other.parameters(), strict=True):
        weight.lerp_(towards.to(weight), share)


def train_shallow(plan: Plan, corpus: Corpus) -> LlavaForConditionalGeneration:
    """The phases before the model grows; returns it with a decoder of a quarter of the depth."""
    torch.manual_seed(plan.seed)
    tokenizer = corpus.encoder.tokenizer
    tokens = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "image": tokenizer.convert_tokens_to_ids("<image>"),
    }
    model = build_target(plan.shape, tokens, plan.shape.layers // plan.growth)
    if not (plan.out / "config.json").exists():
        write(grow(model, plan.growth), corpus.processor, plan.out)
    model.to(plan.device)
    if plan.compiled:
        compile_layers(model)
    tower = TowerPretraining(model.model.vision_tower, plan.shape.width, WORDS).to(plan.device)
    pages = ImageCache.build(
        plan.work / "pages", range(plan.scene_count // 2), render=scenes.page, workers=plan.workers
    )
    looks = TowerBatches(corpus.train, pages, plan.batch, plan.seed)
    run_phase(
        plan,
        "tower",
        tower,
        looks,
        patch_loss,
        evaluate=lambda m: heldout_patches(m, corpus.heldout, looks.words, plan.seed),
    )

    text = TextBatches(
        corpus.encoder,
        corpus.train.turns,
        corpus.passages,
        batch=plan.batch * 2,
        length=96,
        seed=plan.seed,
    )
    # The tower is not part of this phase: freezing it keeps weight decay off it too.
    model.requires_grad_(False)
    for part in (model.model.language_model, model.lm_head):
        part.requires_grad_(True)
    run_phase(plan, "text", model, text, answer_loss)
    model.requires_grad_(True)

    torch.manual_seed(plan.seed)
    everything = rows_of_an_epoch(corpus.train, PHOTOS["joined"])
    shown = np.random.default_rng(plan.seed).choice(everything, min(64, len(everything)))
    sample = torch.from_numpy(corpus.train.pixels[np.sort(shown)])
    calibrate_projector(model, sample.to(plan.device))
    learn_all(plan, corpus, "joined", model, plan.seed, lambda m: grow(m, plan.growth))
    return model


def learn_all(
    plan: Plan,
    corpus: Corpus,
    phase: str,
    model: LlavaForConditionalGeneration,
    seed: int,
    finished: Callable[[LlavaForConditionalGeneration], LlavaForConditionalGeneration],
) -> None:
    """Train all of a model for one phase; ``finished`` makes what every checkpoint writes."""
    rows = rows_of_an_epoch(corpus.train, PHOTOS[phase])
    batches = ImageBatches(corpus.encoder, corpus.train, rows, plan.batch, LONGEST, seed)
    run_phase(
        plan,
        phase,
        model,
        batches,
        answer_loss,
        evaluate=lambda m: heldout_losses(m, corpus.encoder, corpus.heldout, least=batches.width),
        on_checkpoint=lambda m, _: write(finished(m), corpus.processor, plan.out),
    )


def run_phase(
    plan: Plan,
    phase: str,
    module: nn.Module,
    batches: Callable[[int], Any],
    loss: Loss,
    **more: Any,
) -> None:
    """Train a module on the plan's device to the end of a phase; ``more`` is for the trainer."""
    Trainer(
        module,
        Ahead(batches, plan.workers),
        loss,
        plan.settings(phase),
        hidden=in_layers,
        load=lambda batch: [batch.to(plan.device)],
        **more,
    ).run()


def in_layers(name: str, parameter: nn.Parameter) -> bool:
    """Which matrices Muon trains: those inside the layers of tower and decoder."""
    return ".layers." in name


def heldout_losses(
    model: nn.Module, encoder: Encoder, cache: ImageCache, count: int = 48, least: int = 0
) -> dict[str, float]:
    """Mean loss of an answer token on held-out images, one number a task.

    Args:
        count: images a task.
        least: positions that every conversation is padded to.
    """
    losses = {}
    device = next(model.parameters()).device
    for task in (*scenes.TASKS, "photo"):
        rows = [i for i, turns in enumerate(cache.turns) if any(t.task == task for t in turns)]
        # Half of the photographs from either end: both photo sets are judged.
        rows = rows[: count // 2] + rows[count // 2 :][-(count // 2) :]
        if not rows:
            continue
        asked = [[t for t in cache.turns[row] if t.task == task] for row in rows]
        # The first turns of all scenes are of a kind, so each image answers another one.
        turns = encoder.turns(
            [[some[row % len(some)]] for row, some in zip(rows, asked, strict=True)]
        )
        examples = [encoder.conversation(turn, True, 128) for turn in turns]
        total, weight = 0.0, 0
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            images = np.stack([cache.pixels[row] for row in part])
            batch = encoder.collate(examples[start : start + 16], images, least).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                loss, _ = answer_loss(model, batch)
            tokens = int((batch.labels >= 0).sum())
            total, weight = total + loss.item() * tokens, weight + tokens
        losses[f"heldout_{task}"] = total / weight
    return losses


def prefer_float32(config: Path) -> None:
    """Let `dtype="auto"` load weights that are stored in half precision as float32.

    At this size float32 costs little, and only there are the plain and the speculative text the
    same but for ties.
    """
    facts = json.loads(config.read_text())
    for part in (facts, *(v for v in facts.values() if isinstance(v, dict))):
        if "dtype" in part:
            part["dtype"] = "float32"
    config.write_text(json.dumps(facts, indent=2) + "\n")


def write(model: nn.Module, processor: LlavaProcessor, out: Path) -> None:
    """Save in bfloat16 beside its processor; every file appears whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    twin = LlavaForConditionalGeneration(model.config).to(torch.bfloat16)
    twin.load_state_dict(model.state_dict())
    twin.generation_config = model.generation_config
    twin.save_pretrained(fresh, max_shard_size="15MB")
    prefer_float32(fresh / "config.json")
    processor.save_pretrained(fresh)
    write_licence(fresh)
    for file in fresh.iterdir():
        file.chmod(0o644)
        os.replace(file, out / file.name)
    fresh.rmdir()


def _parse(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with flickr8k/, daquar/ and text/gutenberg/; what is missing is left out",
    )
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for the image cache (8 GB for 40000 scenes), checkpoints and logs",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--minutes", type=float, default=126, help="time to train for (126)")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="MODEL",
        help="a model of this recipe to train on",
    )
    parser.add_argument(
        "--rate",
        type=float,
        help=f"peak learning rate with --start ({RATES[FURTHER]:g})",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --start, how far the trained weights are moved back to the first ones (0)",
    )
    parser.add_argument("--scenes", type=int, default=40000, help="how many scenes to render")
    parser.add_argument("--batch", type=int, default=BATCH, help="conversations a step")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use")
    parser.add_argument("--device", default="cpu", help="what trains: cpu, cuda, … (cpu)")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that draw scenes and make batches beside the training, for which a GPU"
        " would wait (0)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the layers (needs a C++ compiler; a step takes half the time or less)",
    )
    parser.add_argument(
        "--toy",
        type=int,
        metavar="STEPS",
        help="a few steps a phase of a very small model, to see that it runs",
    )
    given = parser.parse_args(arguments)
    if given.start and not (given.start / "tokenizer.json").is_file():
        parser.error(f"--start {given.start}: no folder of a model that this recipe wrote")
    if given.start and given.out.resolve() == given.start.resolve():
        parser.error("--out is --start, whose weights are needed until the end: give another")
    if not given.start and (given.keep or given.rate is not None):
        parser.error("--rate and --keep are of a model that is trained on: give --start")
    if not 0 <= given.keep < 1:
        parser.error(f"--keep {given.keep} is no share from 0 up to 1")
    torch.set_num_threads(given.threads)
    shape = TargetShape()
    if given.toy:
        shape = TargetShape(
            vocabulary=512, width=32, heads=2, mlp=48, layers=4, tower_layers=2, tower_mlp=48
        )
    return Plan(
        given.data,
        given.work,
        given.out,
        given.minutes,
        given.scenes,
        given.batch,
        given.seed,
        shape,
        growth=2 if given.toy else 4,
        start=given.start,
        rate=RATES[FURTHER] if given.rate is None else given.rate,
        keep=given.keep,
        device=given.device,
        workers=given.workers,
        compiled=given.compile and not given.toy,
        phase_steps=given.toy,
    )


if __name__ == "__main__":
    main()
