"""The embedded target's ViSpec draft, in the paper's two stages, and EAGLE drafts to compare with.

    python -m vispec.training.recipes.embedded_draft \\
        --data DIR --work DIR --out src/vispec/models/draft

The target answers questions about scenes and photographs of the training split, and text alone;
its features are kept; stage 1 trains the draft on text, stage 2 on images with a self-fed pass;
the tree is then chosen by measured speed on training questions. Everything resumes after a kill.

``--kind eagle`` trains the same draft without an adapter on the same answers for as long;
``--kind eagle-text`` spends all of that time on text alone, as drafts of language models are
trained. All kinds share the answers and features in the work folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import torch
from PIL import Image

from vispec.adapters import QueryAdapter
from vispec.checkpoints import vispec as vispec_format
from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.engine import Engine
from vispec.decoding.planner import TREES, fastest_tree
from vispec.decoding.tree import TreeShape
from vispec.drafts import EagleConfig, EagleDraft
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.targets import Target
from vispec.training import draft as training
from vispec.training import losses, photos, scenes
from vispec.training.distill import Question, distill
from vispec.training.features import Sample, collect
from vispec.training.recipes.card import judged, table, training_of, write_licence
from vispec.training.trainer import Settings, Trainer

KINDS = {"vispec": True, "eagle": True, "eagle-text": False}
"""Drafts that can be trained, and whether they are shown images."""

CARD = """# {title}

{what} ({parameters:.2f} M parameters) for the embedded target, trained by
`vispec.training.recipes.embedded_draft --kind {kind}` on answers that the target itself wrote:
{answers}. Seed {seed}.

**For research use only: trained partly on research-only photographs (Flickr8k, DAQUAR).**

## Training

{training}

Share of held-out positions behind which one, two and three tokens are guessed right:

{curve}

## Measured

Greedy answers to held-out questions, tree of {tree} (the fastest of a few on training questions).
The acceptance length counts tokens a verification pass, the target's own included; without its
picture, a question is answered blindly.

{rows}

Scenes are rendered from templates, and a language model of templates alone would accept much of
their text; photographs say more about what the draft is worth.

## Limits

It fits no other target. A draft never changes what the target says, only how fast.
"""


def scene_questions(
    count: int, part: str, first: int, temperatures: Sequence[float]
) -> list[Question]:
    """Questions about rendered scenes of one part of the split, all tasks in turn."""
    found: list[Question] = []
    for seed in islice(scenes.seeds(part, first), count):
        turn, place = divmod(len(found), len(scenes.TASKS))
        task = scenes.TASKS[place]
        sample = scenes.scene(seed, task)
        found.append(
            Question(
                f"scene-{seed}-{task}",
                sample.question,
                [partial(_render, seed, task)],
                # Each task gets every temperature.
                temperatures[turn % len(temperatures)],
            )
        )
    return found


def photo_questions(
    data: Path, count: int, part: str, temperatures: Sequence[float]
) -> list[Question]:
    """Questions about photographs, both sets in turn."""
    sets = [photos.load(data, name, part) for name in ("flickr8k", "daquar")]
    found: list[Question] = []
    for index in range(count):
        # Captions are the longer texts and there are more of those photographs.
        photo_set = sets[index % 4 == 3]
        photo = photo_set[index % len(photo_set)]
        turn = photo.turns[index % len(photo.turns)]
        found.append(
            Question(
                f"photo-{index}-{photo.path.stem}",
                turn.question,
                [partial(photo.open, scenes.SIZE)],
                temperatures[index % len(temperatures)],
            )
        )
    return found


def text_questions(questions: Sequence[Question], count: int, seed: int = 0) -> list[Question]:
    """Some of the questions with nothing to look at: the target's language alone."""
    some = Random(seed).sample(questions, min(count, len(questions)))
    return [Question(f"text-{q.key}", q.prompt, temperature=1.0) for q in some]


def _render(seed: int, task: str) -> Image.Image:
    return scenes.scene(seed, task).image


def new_draft(target: Target, queries: int = 2, *, seed: int = 0) -> EagleDraft:
    """An untrained ViSpec draft with the geometry of one of the target's decoder layers."""
    torch.manual_seed(seed)
    c = target.text_config
    config = EagleConfig(
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        vocab_size=target.vocab_size,
        rms_norm_eps=c.rms_norm_eps,
        fc_bias=False,
    )
    adapter = QueryAdapter(c.hidden_size, c.num_attention_heads, queries) if queries else None
    return EagleDraft(config, adapter, name="embedded")


def train(
    target: Target,
    draft: EagleDraft,
    text: Sequence[Sample],
    multimodal: Sequence[Sample],
    heldout: Sequence[Sample],
    work: Path,
    *,
    text_s: float,
    multimodal_s: float,
    batch: int = 16,
    learning_rate: float = 1e-3,
) -> None:
    """Both stages, each with a budget in seconds; one without any is left out."""
    for name, samples, weights, self_fed, seconds, rate in (
        ("text", text, losses.TEXT_STAGE, 0, text_s, learning_rate),
        ("multimodal", multimodal, losses.MULTIMODAL_STAGE, 1, multimodal_s, learning_rate / 2),
    ):
        if not seconds:
            continue
        Trainer(
            training.Stage(draft, target, weights, self_fed=self_fed, noise=0.1),
            training.batches(samples, batch, seed=1),
            lambda stage, batch: stage(batch),
            Settings(work / name, rate, budget_s=seconds, clip_norm=0.5, evaluate_s=120.0),
            evaluate=lambda _: heldout_acceptance(draft, target, heldout),
            split=training.split,
            weigh=training.Stage.weight,
            names=lambda samples: ", ".join(sample.key for sample in samples),
        ).run()


def heldout_acceptance(
    draft: EagleDraft, target: Target, samples: Sequence[Sample]
) -> dict[str, float]:
    """What greedy chains of three accept of held-out answers."""
    found = training.acceptance(draft, target, samples, 3)
    return {f"heldout_{name}": value for name, value in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded", help="folder of the target")
    parser.add_argument("--data", type=Path, required=True, help="folder with the photographs")
    parser.add_argument("--work", type=Path, required=True, help="answers, features, checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="where the draft is saved")
    parser.add_argument(
        "--kind", choices=tuple(KINDS), default="vispec", help="which draft to train (vispec)"
    )
    parser.add_argument("--queries", type=int, default=2, help="of the vispec adapter (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the draft's first weights (0)")
    parser.add_argument("--scenes", type=int, default=9000, help="scene questions (9000)")
    parser.add_argument("--photos", type=int, default=8000, help="photograph questions (8000)")
    parser.add_argument("--texts", type=int, default=4000, help="questions without image (4000)")
    parser.add_argument("--heldout", type=int, default=96, help="held-out questions (96)")
    parser.add_argument("--text-minutes", type=float, default=3, help="stage 1 (3)")
    parser.add_argument("--multimodal-minutes", type=float, default=57, help="stage 2 (57)")
    parser.add_argument("--max-new-tokens", type=int, default=112, help="longest answer (112)")
    options = parser.parse_args(argv)

    target = load_target(options.target)
    claim(
        options.work,
        {
            "target": fingerprint(locate(options.target)),
            **{name: getattr(options, name) for name in ("scenes", "photos", "texts", "heldout")},
            "max_new_tokens": options.max_new_tokens,
        },
    )
    mixed = (0.0, 0.0, 1.0)
    asked = scene_questions(options.scenes, "train", 5_000_000, mixed)
    asked += photo_questions(options.data, options.photos, "train", mixed)
    alone = text_questions(asked, options.texts)
    unseen = scene_questions(options.heldout * 2 // 3, "heldout", 9_000_000, (0.0,))
    unseen += photo_questions(options.data, options.heldout // 3, "heldout", (0.0,))

    engine = Engine(target, max_batch=32)
    samples = {}
    for name, questions in (("heldout", unseen), ("text", alone), ("multimodal", asked)):
        answers = distill(
            engine,
            questions,
            options.work / "answers" / name,
            max_new_tokens=options.max_new_tokens,
        )
        samples[name] = collect(target, questions, answers, options.work / "features" / name)

    work = options.work / options.kind
    draft = new_draft(target, options.queries if options.kind == "vispec" else 0, seed=options.seed)
    minutes = options.text_minutes, options.multimodal_minutes
    if not KINDS[options.kind]:
        minutes = sum(minutes), 0.0
    train(
        target,
        draft,
        samples["text"],
        samples["multimodal"],
        samples["heldout"],
        work,
        text_s=minutes[0] * 60,
        multimodal_s=minutes[1] * 60,
    )
    # What is measured is what is kept: the weights as half precision rounds them.
    final = draft.to(torch.bfloat16).to(target.dtype).eval().requires_grad_(False)
    # Questions like those it learnt from, but others.
    fresh = scene_questions(18, "train", 7_000_000, (0.0,))
    fresh += photo_questions(options.data, options.photos + 6, "train", (0.0,))[options.photos :]
    tree = fastest_tree(
        lambda shape: Engine(target, final, tree=shape),
        TREES,
        [question.request(128, 0) for question in fresh],
    )
    speculating = Engine(target, final, tree=tree)
    measured = acceptance(speculating, unseen)
    blind = acceptance(speculating, [replace(question, images=()) for question in unseen])
    vispec_format.write(
        final.to(torch.bfloat16),
        options.out,
        target="vispec embedded target",
        tree={"size": tree.size, "depth": tree.depth, "width": tree.width},
    )
    write_licence(options.out)
    counts = {name: len(samples[name]) for name in ("text", "multimodal")}
    text = card(final, options.kind, options.seed, work, tree, counts, measured, blind)
    (options.out / "README.md").write_text(text)
    (work / "result.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(measured, flush=True)


def acceptance(engine: Engine, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """By task: how many questions, tokens, and tokens a verification pass, greedily."""
    found: dict[str, dict[str, float]] = {}
    for question in questions:
        stats = engine.generate([question.request(128, 0)])[0].stats
        # Keys read scene-SEED-TASK and photo-INDEX-NAME.
        kind, _, last = question.key.split("-", 2)
        row = found.setdefault(
            last if kind == "scene" else kind, {"questions": 0, "tokens": 0, "passes": 0}
        )
        row["questions"] += 1
        row["tokens"] += stats.new_tokens
        row["passes"] += stats.target_passes
    for row in found.values():
        # Every answer's first token comes from the prefill.
        drafted = row["tokens"] - row["questions"]
        row["acceptance_length"] = drafted / max(1, row["passes"])
    return found


def card(
    draft: EagleDraft,
    kind: str,
    seed: int,
    work: Path,
    tree: TreeShape,
    counts: dict[str, int],
    measured: dict[str, dict[str, float]],
    blind: dict[str, dict[str, float]],
) -> str:
    """The text of the draft's model card.

    Args:
        counts: answers of each kind that there were to learn from.
        measured: what `acceptance` found.
        blind: the same without pictures.
    """
    header = ("task", "questions", "tokens", "acceptance length", "without its picture")
    rows = [
        (
            task,
            row["questions"],
            row["tokens"],
            f"{row['acceptance_length']:.2f}",
            f"{blind[task]['acceptance_length']:.2f}",
        )
        for task, row in measured.items()
    ]
    curve = [
        (
            phase,
            line["step"],
            f"{line['elapsed_s'] / 60:.0f}",
            *(f"{line[f'heldout_accepted_{step}']:.3f}" for step in (1, 2, 3)),
        )
        for phase in ("text", "multimodal")
        for line in judged(work, phase, "heldout_accepted_1", 6)
    ]
    answers = f"{counts['text']} to questions without a picture, sampled at temperature 1"
    if KINDS[kind]:
        answers += (
            f",\nand {counts['multimodal']} to questions with one, two thirds of them greedily and"
            " the rest at temperature 1"
        )
    adapter = draft.adapter
    what = "An EAGLE draft: one decoder layer that reads every image token"
    if isinstance(adapter, QueryAdapter):
        what = f"A ViSpec draft: one decoder layer and an adapter of {adapter.q.shape[0]} queries"
    return CARD.format(
        title="The embedded draft" if kind == "vispec" else f"A draft to compare with: {kind}",
        what=what,
        kind=kind,
        seed=seed,
        parameters=sum(p.numel() for p in draft.parameters()) / 1e6,
        answers=answers,
        training=training_of(work, ("text", "multimodal")),
        curve=table(("stage", "step", "minutes", "one", "two", "three"), curve),
        tree=f"{tree.size} nodes, depth {tree.depth}, width {tree.width}",
        rows=table(header, rows),
    )


if __name__ == "__main__":
    main()
