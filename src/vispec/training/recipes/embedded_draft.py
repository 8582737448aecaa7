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
from pathlib import Path
from typing import Any

import torch

from vispec.adapters import QueryAdapter
from vispec.checkpoints import vispec as vispec_format
from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.engine import Engine
from vispec.decoding.planner import TREES, fastest_tree
from vispec.decoding.tree import TreeShape
from vispec.drafts import EagleDraft
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.training import losses
from vispec.training.distill import Question, distill
from vispec.training.drafts import new_draft
from vispec.training.features import collect
from vispec.training.pipeline import run_stage
from vispec.training.recipe import DraftRecipe, Recipe, StageRecipe
from vispec.training.recipes.card import judged, table, training_of, write_licence
from vispec.training.recipes.embedded_questions import (
    groups,
    photo_questions,
    scene_questions,
    task_of,
)

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


def stages(kind: str, text_minutes: float, multimodal_minutes: float) -> list[StageRecipe]:
    """What a draft of a kind goes through; stages without any time are left out."""
    if not KINDS[kind]:
        text_minutes, multimodal_minutes = text_minutes + multimodal_minutes, 0.0
    both = [
        StageRecipe(
            name="text",
            data=["text"],
            losses=losses.TEXT_STAGE,
            learning_rate=1e-3,
            minutes=text_minutes,
            relative_noise=0.1,
            evaluate_minutes=2.0,
        ),
        StageRecipe(
            name="multimodal",
            data=["multimodal"],
            losses=losses.MULTIMODAL_STAGE,
            learning_rate=5e-4,
            minutes=multimodal_minutes,
            relative_noise=0.1,
            self_fed=1,
            evaluate_minutes=2.0,
        ),
    ]
    return [stage for stage in both if stage.minutes]


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
    asked = groups(
        options.data,
        scenes=options.scenes,
        photos=options.photos,
        texts=options.texts,
        heldout=options.heldout,
    )
    unseen = asked["heldout"]
    engine = Engine(target, max_batch=32)
    samples = {}
    for name, questions in asked.items():
        answers = distill(
            engine,
            questions,
            options.work / "answers" / name,
            max_new_tokens=options.max_new_tokens,
        )
        samples[name] = collect(target, questions, answers, options.work / "features" / name)

    work = options.work / options.kind
    c = target.text_config
    adapter = {"kind": "query", "heads": c.num_attention_heads, "queries": options.queries}
    wanted = DraftRecipe(adapter=adapter if options.kind == "vispec" else None)
    plan = Recipe(
        target=options.target,
        data={},
        stages=stages(options.kind, options.text_minutes, options.multimodal_minutes),
        draft=wanted,
        seed=options.seed,
    )
    draft: Any = new_draft(target, wanted, seed=options.seed).float()
    for stage in plan.stages:
        data = [samples[name] for name in stage.data]
        run_stage(draft, target, stage, data, list(samples["heldout"]), work, plan)
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
        row = found.setdefault(task_of(question.key), {"questions": 0, "tokens": 0, "passes": 0})
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
        for line in judged(work / "stages", phase, "heldout_accepted_1", 6)
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
        training=training_of(work / "stages", ("text", "multimodal")),
        curve=table(("stage", "step", "minutes", "one", "two", "three"), curve),
        tree=f"{tree.size} nodes, depth {tree.depth}, width {tree.width}",
        rows=table(header, rows),
    )


if __name__ == "__main__":
    main()
