"""Adapters, ways of training and kinds of drafts, compared on the embedded target.

    python benchmarks/drafts_compared.py --data DIR --work DIR --out benchmarks/results/drafts.json

Every arm is trained for the same minutes on the same answers and features, from the same seeds;
then all of them answer the same held-out questions by turns, plainly decoded answers among them.
Everything resumes: an arm that is trained is not trained again, a question that all have answered
is not asked again, and the result is written anew after every one. What was measured of every
single answer is kept, so that differences can be judged question by question.

Run it where nothing else runs: training may be disturbed, but what is timed at the end may not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.drafts.hybrid import HybridDraft
from vispec.drafts.lookup import LookupDraft
from vispec.evaluation.conditions import commit, conditions
from vispec.hub import save_pretrained
from vispec.loading_drafts import load_draft
from vispec.loading_targets import load_target
from vispec.training import pipeline
from vispec.training.curves import read_log
from vispec.training.distill import Question, distill
from vispec.training.drafts import new_draft
from vispec.training.features import Sample, Store, collect
from vispec.training.recipe import DraftRecipe, Recipe, StageRecipe
from vispec.training.recipes import embedded_draft as questions_of

LAYERS = (2, 16, 29)
"""Features that EAGLE-3 and fused drafts read; the last hidden states are kept beside them."""
TREE = TreeShape(8, 5, 2)
QUERY = {"kind": "query", "heads": 6, "queries": 2}
MLP = {"kind": "mlp", "inner": 96}
POOLING = {"kind": "pooling", "keep": 16}
PRUNING = {"kind": "pruning", "keep": 16}
CONVOLUTION = {"kind": "convolution", "stride": 9}
RESAMPLER = {"kind": "resampler", "heads": 6, "queries": 16, "inner": 384}
TEXT = StageRecipe(
    name="text",
    data=["text"],
    losses={"features": 1.0, "soft_cross_entropy": 0.1, "ranking": 0.01},
    learning_rate=1e-3,
    minutes=0.05,
    noise=0.1,
)
SHOWN = StageRecipe(
    name="multimodal",
    data=["multimodal"],
    losses={"probability": 10.0, "ranking": 0.1},
    learning_rate=5e-4,
    minutes=0.95,
    noise=0.1,
    self_fed=1,
)
TOKENS = {"soft_cross_entropy": 1.0}


@dataclass(frozen=True)
class Arm:
    """What is trained, and how; the minutes of its stages are shares of the budget.

    Attributes:
        group: what it is compared in: `adapters`, `training` or `kinds`.
    """

    group: str
    draft: DraftRecipe
    stages: tuple[StageRecipe, ...] = (TEXT, SHOWN)
    seeds: int = 1
    layered: bool = False


def with_adapter(adapter: Any, seeds: int = 1) -> Arm:
    return Arm("adapters", DraftRecipe(adapter=adapter), seeds=seeds)


VISPEC = DraftRecipe(adapter=QUERY)
ARMS: dict[str, Arm] = {
    "query": with_adapter(QUERY, seeds=3),
    "none": with_adapter(None, seeds=3),
    "hidden": with_adapter({"kind": "hidden"}, seeds=3),
    "pooling": with_adapter(POOLING, seeds=3),
    "linear": with_adapter({"kind": "linear"}),
    "mlp of 2": with_adapter(MLP),
    "mlp of 3": with_adapter({**MLP, "layers": 3}),
    "transformer": with_adapter({"kind": "transformer", "heads": 6, "inner": 384}),
    "pruning": with_adapter(PRUNING),
    "convolution": with_adapter(CONVOLUTION),
    "resampler": with_adapter(RESAMPLER),
    "elastic": with_adapter(
        {"kind": "elastic", "parts": [PRUNING, POOLING, CONVOLUTION, RESAMPLER, {"kind": "hidden"}]}
    ),
    "pooling and mlp": with_adapter([POOLING, MLP]),
    "query of 1": with_adapter({**QUERY, "queries": 1}),
    "query of 8": with_adapter({**QUERY, "queries": 8}),
    "without the text stage": Arm("training", VISPEC, (replace(SHOWN, minutes=1.0),)),
    "without self-fed passes": Arm("training", VISPEC, (TEXT, replace(SHOWN, self_fed=0))),
    "three self-fed passes": Arm("training", VISPEC, (TEXT, replace(SHOWN, self_fed=3))),
    "fused features": Arm(
        "training", DraftRecipe(adapter=QUERY, aux_layers=[*LAYERS]), layered=True
    ),
    "text alone": Arm("kinds", DraftRecipe(), (replace(TEXT, minutes=1.0),)),
    "eagle3": Arm(
        "kinds",
        DraftRecipe(kind="eagle3", aux_layers=[*LAYERS]),
        (replace(SHOWN, losses=TOKENS, self_fed=3, minutes=1.0, learning_rate=1e-3, noise=0.0),),
        layered=True,
    ),
    "eagle3 and query": Arm(
        "kinds",
        DraftRecipe(kind="eagle3", aux_layers=[*LAYERS], adapter=QUERY),
        (replace(SHOWN, losses=TOKENS, self_fed=3, minutes=1.0, learning_rate=1e-3, noise=0.0),),
        layered=True,
    ),
    "medusa": Arm(
        "kinds",
        DraftRecipe(kind="medusa", heads=5),
        (replace(SHOWN, losses=TOKENS, decay=0.8, minutes=1.0, learning_rate=1e-3, noise=0.0),),
    ),
}


@dataclass
class Measured:
    """Of one way of answering: numbers of every question, in their order."""

    tokens: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    draft_s: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--data", type=Path, required=True, help="folder with the photographs")
    parser.add_argument("--work", type=Path, required=True, help="answers, features, drafts")
    parser.add_argument("--out", type=Path, required=True, help="the result")
    parser.add_argument("--minutes", type=float, default=12, help="of training an arm (12)")
    parser.add_argument("--scenes", type=int, default=9000, help="scene questions (9000)")
    parser.add_argument("--photos", type=int, default=8000, help="photograph questions (8000)")
    parser.add_argument("--texts", type=int, default=4000, help="questions without image (4000)")
    parser.add_argument("--heldout", type=int, default=192, help="to judge training by (192)")
    parser.add_argument("--asked", type=int, default=240, help="questions that are timed (240)")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    options = parser.parse_args(argv)

    target = load_target(options.target, dtype="float32")
    stores = prepare(target, options)
    trained = []
    for name in options.arms:
        for seed in range(ARMS[name].seeds):
            folder = options.work / "arms" / f"{name.replace(' ', '-')}-{seed}"
            train_arm(target, ARMS[name], seed, stores, folder, options.minutes)
            trained.append((name, seed, folder))
    measure(target, trained, options)


def prepare(target: Any, options: argparse.Namespace) -> dict[str, Path]:
    """Answers and features; folders of the latter by name."""
    mixed = (0.0, 0.0, 1.0)
    asked = questions_of.scene_questions(options.scenes, "train", 5_000_000, mixed)
    asked += questions_of.photo_questions(options.data, options.photos, "train", mixed)
    unseen = questions_of.scene_questions(options.heldout * 2 // 3, "heldout", 9_000_000, (0.0,))
    unseen += questions_of.photo_questions(options.data, options.heldout // 3, "heldout", (0.0,))
    found = {}
    helper, tree = load_draft("embedded", target)
    engine = Engine(target, helper, tree=tree, max_batch=32)
    for name, group in (
        ("heldout", unseen),
        ("text", questions_of.text_questions(asked, options.texts)),
        ("multimodal", asked),
    ):
        answers = distill(engine, group, options.work / "answers" / name, max_new_tokens=112)
        found[name] = options.work / "features" / name
        collect(target, group, answers, found[name], layers=LAYERS)
    return found


def train_arm(
    target: Any, arm: Arm, seed: int, stores: Mapping[str, Path], folder: Path, minutes: float
) -> None:
    """Train an arm to its end, if it is not."""
    if (folder / "draft").exists():
        return
    data = {name: Store(path, target, layered=arm.layered) for name, path in stores.items()}
    heldout: list[Sample] = list(data["heldout"])
    draft: Any = new_draft(target, arm.draft, seed=seed).float()
    recipe = Recipe(target="embedded", data={}, stages=[], draft=arm.draft, seed=seed)
    for stage in arm.stages:
        whole = replace(stage, minutes=stage.minutes * minutes, evaluate_minutes=minutes / 6)
        pipeline.run_stage(
            draft, target, whole, [data[name] for name in stage.data], heldout, folder, recipe
        )
    save_pretrained(draft.to(torch.bfloat16).eval(), folder / "draft")


def measure(
    target: Any, trained: Sequence[tuple[str, int, Path]], options: argparse.Namespace
) -> None:
    """Answer the held-out questions with every draft by turns."""
    asked = timed_questions(options)
    ways: dict[str, Engine] = {"plain": Engine(target)}
    parameters, logs = {}, {}
    for name, seed, folder in trained:
        draft, _ = load_draft(folder / "draft", target)
        label = f"{name} {seed}"
        parameters[label] = sum(p.numel() for p in draft.parameters())  # type: ignore[attr-defined]
        logs[label] = {stage.name: read_log(folder / "stages" / stage.name)[-3:]
                       for stage in ARMS[name].stages}  # fmt: skip
        ways[label] = Engine(target, draft, tree=TREE)
        if name == "query" and seed == 0:
            ways["query 0, chain"] = Engine(target, draft, tree=TreeShape.chain(TREE.depth))
            ways["query 0 with lookup"] = Engine(target, HybridDraft(draft), tree=TREE)
    ways["lookup"] = Engine(target, LookupDraft(), tree=TREE)
    path = options.work / "measured.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    found = {label: Measured(**kept.get(label, {})) for label in ways}
    begun = min((len(one.tokens) for one in found.values()), default=0)
    for one in found.values():  # what an interruption cut short is asked again by all
        for numbers in vars(one).values():
            del numbers[begun:]
    for engine in ways.values():
        engine.generate([asked[0].request(8, 0)])
    labels = list(ways)
    for place in range(begun, len(asked)):
        for turn in range(len(labels)):
            label = labels[(turn + place) % len(labels)]
            (result,) = ways[label].generate([asked[place].request(112, place)])
            stats, one = result.stats, found[label]
            one.tokens.append(stats.new_tokens)
            one.passes.append(stats.target_passes)
            one.draft_s.append(round(stats.draft_s, 6))
            one.verify_s.append(round(stats.verify_s, 6))
            one.total_s.append(round(stats.total_s, 6))
        path.write_text(json.dumps({label: asdict(one) for label, one in found.items()}))
    result = {
        "command": "python benchmarks/drafts_compared.py",
        "minutes": options.minutes,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": conditions(),
        "questions": [question.key for question in asked],
        "arms": {name: asdict(ARMS[name]) for name in options.arms},
        "parameters": parameters,
        "logs": logs,
        "measured": {label: asdict(one) for label, one in found.items()},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def timed_questions(options: argparse.Namespace) -> list[Question]:
    """Held-out scenes and photographs that no arm was judged by while it was trained."""
    scenes = questions_of.scene_questions(options.asked * 3 // 4, "heldout", 9_500_000, (0.0,))
    photos = questions_of.photo_questions(
        options.data, options.heldout // 3 + options.asked // 4, "heldout", (0.0,)
    )
    return scenes + photos[options.heldout // 3 :]


if __name__ == "__main__":
    main()
