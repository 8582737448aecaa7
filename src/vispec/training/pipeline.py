"""From a recipe to a draft: questions, answers, features, stages, and what came of it.

Everything lies in one folder and goes on where it was interrupted::

    answers/<source>/   what the target said
    features/<layers>/<source>/   what it saw, unless features are online
    stages/<name>/      checkpoints, log.jsonl, and for tensorboard; of the last one, tree.json,
                        the tree that was fastest
    draft/              the draft, with a model card and provenance.json
    curves.png          losses and held-out acceptance
"""

from __future__ import annotations

import copy
import json
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import ConcatDataset

from vispec.adapters import build, settings_of
from vispec.checkpoints.export import carry_licence
from vispec.checkpoints.files import fingerprint, licence, locate
from vispec.checkpoints.registry import read
from vispec.decoding.engine import Engine, Request
from vispec.decoding.planner import CHAINS, TREES, fastest_tree
from vispec.decoding.tree import TreeShape
from vispec.drafts import Eagle3Draft, EagleDraft
from vispec.drafts.compression import compression_of
from vispec.drafts.medusa import MedusaDraft
from vispec.errors import SettingsError, VispecError
from vispec.hub import Card, save_pretrained
from vispec.loading_drafts import load_draft, share_embedding
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.targets import Target
from vispec.training.chains import joined
from vispec.training.curves import draw
from vispec.training.distill import Answers, Question, digest, distill, read_answers
from vispec.training.draft import Batches, Stage, acceptance, matrices, split
from vispec.training.drafts import frequent, new_draft
from vispec.training.features import Online, Sample, Store, collect
from vispec.training.medusa import MedusaStage, medusa_acceptance
from vispec.training.progress import Progress
from vispec.training.provenance import provenance
from vispec.training.questions import questions, refuse_shared
from vispec.training.recipe import DraftRecipe, Recipe, StageRecipe
from vispec.training.trainer import Settings, Trainer
from vispec.writing import replace_folder, write_json

HELDOUT = "heldout"
WATCHED = f"{HELDOUT}_acceptance_length"
"""What a stage with patience waits for."""
ASKED, LONGEST, ROUNDS = 12, 64, 2
"""Questions that trees and drafts are timed on, tokens of their answers, and how often."""
SHAPES = (*CHAINS[2::2], *TREES)
"""Where every step costs a start of its own, and few guesses are wrong, a chain may be faster."""
NETWORKS = {"eagle": EagleDraft, "eagle3": Eagle3Draft, "medusa": MedusaDraft}


def train(
    recipe: Recipe,
    folder: Path,
    *,
    init: str | None = None,
    command: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> dict[str, float]:
    """Train a draft.

    Args:
        folder: of the run; see the module's text.
        cache: of answers and features, which several runs may share; the run's own by default.
        init: a draft to begin with, such as that of the model that the target was tuned from.
        command: that asked for it, for provenance.
        device: of the target.

    Returns:
        what greedy chains accept of held-out answers in the end.

    Raises:
        VispecError: for anything wrong with the recipe, its data or its target.
    """
    run = prepare(recipe, folder, init=init, command=command, device=device, cache=cache)
    for number, stage in enumerate(recipe.stages):
        claim_stage(folder, recipe.stages, number)
        own = [run.data[name] for name in stage.data]
        heldout = run.data[HELDOUT]
        run_stage(run.draft, run.target, stage, own, heldout, folder, recipe, origin=run.origin)
    found = keep(run, folder / "stages")
    advise(run, found)
    return found


@dataclass(frozen=True)
class Run:
    """A draft, and what it learns from.

    Attributes:
        draft: on the target's device in float32.
        asked, answers, data: questions, what the target said, and what it saw, by source; of
            questions those that there are samples of.
        init: the draft that it began with.
        origin: where all of it comes from.
    """

    recipe: Recipe
    folder: Path
    target: Target
    draft: Any
    asked: Mapping[str, Sequence[Question]]
    answers: Mapping[str, Answers]
    data: Mapping[str, Online | Store]
    origin: Mapping[str, Any]
    init: str | None = None


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    init: str | None = None,
    command: str = "",
    device: str = "auto",
    cache: Path | None = None,
) -> Run:
    """All that comes before the stages; see `train`."""
    asked = {name: questions(source, name) for name, source in recipe.data.items()}
    refuse_shared(asked, HELDOUT)
    state, place = process_and_device(device)
    target = load_target(recipe.target, device=place)
    check_draft(target, recipe.draft, init)
    for candidate in recipe.candidates:
        check_draft(target, candidate)
    cache = cache or folder
    begun_with = None if init is None else [init, fingerprint(Path(locate(init, "draft")))]
    with state.main_process_first():
        facts = claim_answers(recipe, cache, asked)
        claim(folder, {"draft": asdict(recipe.draft), "init": begun_with, **facts})
    answers = gather(target, recipe, cache, asked, init)
    draft = begin(target, recipe, answers, init)
    layers = draft.feature_layers(target)
    data = {
        name: look_up(target, recipe, cache, name, asked[name], answers[name], layers)
        for name in asked
    }
    for name, samples in data.items():
        known = frozenset(samples.keys)
        asked[name] = [question for question in asked[name] if question.key in known]
    origin = {
        **provenance(command, cache / "answers"),
        "processes": state.num_processes,
        "recipe": asdict(recipe),
    }
    return Run(recipe, folder, target, draft, asked, answers, data, origin, init)


def claim_stage(folder: Path, stages: Sequence[StageRecipe], number: int) -> None:
    """Keep a stage's folder to what came before it."""
    before = {"before": [asdict(one) for one in stages[:number]]}
    with PartialState().main_process_first():
        claim(folder / "stages" / stages[number].name, before, "before.json")


def keep(run: Run, logs: Path) -> dict[str, float]:
    """Judge a draft that has learnt, and write it.

    Args:
        logs: folder of the stages.

    Returns:
        what greedy chains accept of held-out answers.
    """
    state, recipe, draft = PartialState(), run.recipe, run.draft
    # What is measured is what is kept: the weights as half precision rounds them.
    draft.to(torch.bfloat16).to(torch.float32).eval().requires_grad_(False)
    found = judged(draft, run.target, run.data[HELDOUT], recipe.stages[-1].positions)
    if state.is_main_process:
        draw(logs, [stage.name for stage in recipe.stages], run.folder / "curves.png")
        finish(run, found)
    state.wait_for_everyone()
    return found


def advise(run: Run, found: Mapping[str, float]) -> None:
    """Time trees, and write the draft with the fastest; whatever happens there, it is kept.

    Args:
        found: see `keep`.
    """
    state, recipe = PartialState(), run.recipe
    if state.is_main_process:
        learnt = [run.asked[name] for name in recipe.stages[-1].data]
        path = run.folder / "stages" / recipe.stages[-1].name / "tree.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = chosen_tree(run.draft, run.target, learnt, recipe.max_new_tokens, path)
        finish(run, found, tree)
    state.wait_for_everyone()


def process_and_device(device: str) -> tuple[PartialState, Any]:
    """Of several processes each has a device of its own, unless it is told which."""
    # Processes that share CPUs find each other only if they are told that these are meant.
    cpu = device == "cpu" or not torch.accelerator.is_available()
    # One process may answer and measure for long while the others wait.
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    return state, state.device if device == "auto" else device


def identity(target: str) -> dict[str, str]:
    """What answers depend on of a target: its name, and its weights where they are at hand."""
    place = Path(locate(target))
    return {"target": target, "weights": fingerprint(place) if place.is_dir() else ""}


def claim_answers(
    recipe: Recipe, folder: Path, asked: Mapping[str, Sequence[Question]]
) -> dict[str, Any]:
    """Keep a folder's answers and features to one recipe's; what they depend on."""
    facts = {
        **identity(recipe.target),
        "features": recipe.features,
        "max_new_tokens": recipe.max_new_tokens,
        "questions": {name: digest(group, recipe.max_new_tokens) for name, group in asked.items()},
    }
    claim(folder, facts, "cache.json")
    return facts


def gather(
    target: Target,
    recipe: Recipe,
    folder: Path,
    asked: Mapping[str, Sequence[Question]],
    init: str | None,
) -> dict[str, Answers]:
    """Let the target answer, every process its part; with a draft where there is one already."""
    state = PartialState()
    helper, tree = load_draft(init, target) if init else (None, None)
    engine = Engine(target, helper, tree=tree, max_batch=recipe.max_batch)
    answer(engine, recipe, folder, asked, state.process_index, state.num_processes)
    state.wait_for_everyone()
    return {name: read_answers(folder / "answers" / name) for name in asked}


def answer(
    engine: Engine,
    recipe: Recipe,
    folder: Path,
    asked: Mapping[str, Sequence[Question]],
    worker: int,
    workers: int,
) -> dict[str, Answers]:
    """One worker's part of the answers to a recipe's questions, in `folder/answers`."""
    return {
        name: distill(
            engine,
            group,
            folder / "answers" / name,
            max_new_tokens=recipe.max_new_tokens,
            batch=12 * recipe.max_batch,
            worker=worker,
            workers=workers,
        )
        for name, group in asked.items()
    }


def check_draft(target: Target, wanted: DraftRecipe, init: str | None = None) -> None:
    """Raise `VispecError` if the target cannot have a draft, before it answers anything."""
    if init is not None:
        draft = started(target, wanted, init)
        draft.check(target)
        if compression_of(draft) is not None:
            raise SettingsError(
                f"'{init}' is a compressed draft, which learns no more",
                "Begin with the draft that it was made of.",
            )
    elif wanted.vocabulary > target.vocab_size:
        raise SettingsError(
            f"the draft has a vocabulary of {wanted.vocabulary} tokens, and {target.name} of"
            f" {target.vocab_size}",
            "Give fewer, or none for all.",
        )
    else:
        with torch.device("meta"):
            draft = new_draft(target, wanted)
    depth = target.text_config.num_hidden_layers
    if missing := [layer for layer in draft.feature_layers(target) if layer > depth]:
        raise SettingsError(
            f"aux_layers has {missing[0]}, and {target.name} has {depth} layers",
            f"What they read and what the last one gives is counted from 0 to {depth}.",
        )


def begin(target: Target, recipe: Recipe, answers: Mapping[str, Answers], init: str | None) -> Any:
    """The draft before its training, on the target's device in float32."""
    torch.manual_seed(recipe.seed)
    wanted, token_map = recipe.draft, None
    if init is not None:
        draft = started(target, wanted, init)
        share_embedding(draft, target)
    else:
        if wanted.vocabulary:
            token_map = learnt_tokens(answers, wanted.vocabulary, target)
        draft = new_draft(target, wanted, seed=recipe.seed, token_map=token_map)
    return draft.to(device=target.device, dtype=torch.float32).requires_grad_(True).train()


def started(target: Target, wanted: DraftRecipe, init: str) -> Any:
    """The draft to begin with; one without an adapter takes the recipe's, as ViSpec's EAGLE does.

    Raises:
        SettingsError: if it is another than the recipe describes.
    """
    draft: Any = read(init)
    refuse_another(draft, wanted, init)
    if wanted.adapter is not None and draft.adapter is None:
        draft.take(build(wanted.adapter, draft.width), bias=draft.config.fc_bias)
    return draft.to(device=target.device, dtype=target.dtype)


def learnt_tokens(answers: Mapping[str, Answers], count: int, target: Target) -> torch.Tensor:
    """The most frequent tokens of the answers, those that drafts are judged by left out."""
    told = [found for name, found in answers.items() if name != HELDOUT]
    said = (answer.token_ids for found in told for answer in found.values())
    return frequent(said, count, target.vocab_size)


def refuse_another(draft: Any, wanted: DraftRecipe, init: str) -> None:
    """Raise if a draft to begin with is not what the recipe describes, where it describes one."""
    if wanted == DraftRecipe():
        return
    meant = {name: getattr(wanted, name) for name in ("kind", "layers", "vocabulary")}
    if wanted.heads is not None:
        meant["heads"] = wanted.heads
    if wanted.aux_layers is not None or wanted.kind == "eagle":
        meant["aux_layers"] = list(wanted.aux_layers or ())
    own = described(draft)
    if own.get("adapter") is not None:
        meant["adapter"] = None
        if wanted.adapter is not None:
            with torch.device("meta"):
                meant["adapter"] = settings_of(build(wanted.adapter, draft.width))
    # As a file states them.
    own, meant = json.loads(json.dumps([own, meant]))
    other = [name for name, value in meant.items() if own.get(name) != value]
    if other:
        said = "; ".join(f"its {name} is {own.get(name)!r}, not {meant[name]!r}" for name in other)
        raise SettingsError(
            f"'{init}' is another draft than the recipe describes: {said}",
            "Leave [draft] out of the recipe.",
        )


def described(draft: Any) -> dict[str, Any]:
    """A draft in a recipe's words."""
    kind = next((kind for kind, made in NETWORKS.items() if isinstance(draft, made)), None)
    if kind is None:
        return {"kind": type(draft).__name__}
    c = draft.config
    if kind == "medusa":
        return {"kind": kind, "layers": c.layers, "heads": c.heads, "vocabulary": 0}
    known = getattr(c, "draft_vocab_size", c.vocab_size)
    return {
        "kind": kind,
        "layers": c.num_hidden_layers,
        "vocabulary": 0 if known == c.vocab_size else known,
        "aux_layers": list(c.aux_layers or ()),
        "adapter": None if draft.adapter is None else settings_of(draft.adapter),
    }


def look_up(
    target: Target,
    recipe: Recipe,
    folder: Path,
    name: str,
    asked: Sequence[Question],
    answers: Answers,
    layers: Sequence[int],
) -> Online | Store:
    """What the target saw, worked out when it is asked for or kept.

    Raises:
        VispecError: if there is nothing.
    """
    known = [question for question in asked if question.key in answers]
    if not known:
        raise SettingsError(f"none of the questions of '{name}' was answered")
    if recipe.features == "online":
        return Online(target, known, answers, layers)
    place = folder / "features" / "-".join(map(str, layers or ("last",))) / name
    state = PartialState()
    collect(
        target,
        known,
        answers,
        place,
        layers=layers,
        precision=recipe.features,
        worker=state.process_index,
        workers=state.num_processes,
    )
    state.wait_for_everyone()
    store = Store(place, target)
    if not len(store):
        raise VispecError(f"there are no features of '{name}' in {place}")
    if state.is_main_process:
        print(f"features of {name}: {store.bytes_per_token:.0f} bytes a position", flush=True)
    return store


def run_stage(
    draft: Any,
    target: Target,
    stage: StageRecipe,
    data: Sequence[Sequence[Sample]],
    heldout: Sequence[Sample],
    folder: Path,
    recipe: Recipe,
    clock: Callable[[], float] = time.monotonic,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Train one stage to its end.

    Args:
        clock: counts its minutes.
        origin: where its checkpoints come from.

    Raises:
        VispecError: if the stage was begun with other settings.
    """
    place = folder / "stages" / stage.name
    with PartialState().main_process_first():
        claim(place, {"stage": asdict(stage), "seed": recipe.seed}, "stage.json")
    module = staged(draft, target, stage)
    parts: Any = data
    whole: Any = ConcatDataset(parts)
    batches = Batches(whole, stage.batch, recipe.seed, stage.positions)
    Trainer(
        module,
        batches,
        lambda model, samples: model(samples),
        settings_of_stage(stage, place, clock),
        evaluate=lambda model: heldout_numbers(model.draft, target, heldout, stage),
        split=split,
        load=batches.load,
        hidden=matrices(module),
        weigh=Stage.weight,
        names=names_of,
        origin=origin,
    ).run()


def staged(draft: Any, target: Target, stage: StageRecipe) -> nn.Module:
    """A draft with what a stage asks of it; what is not to learn is frozen."""
    draft.train().requires_grad_(True)
    adapter = getattr(draft, "adapter", None)
    if stage.train != "all":
        if adapter is None:
            raise SettingsError(
                f"stage '{stage.name}' trains the {stage.train}: there is no adapter"
            )
        joins = [adapter, *([draft.img_fc] if draft.img_fc is not None else [])]
        draft.requires_grad_(stage.train == "draft")
        for part in joins:
            part.requires_grad_(stage.train == "adapter")
        if not any(parameter.requires_grad for parameter in draft.parameters()):
            raise SettingsError(
                f"stage '{stage.name}' trains the {stage.train}, which has nothing that learns"
            )
    if isinstance(draft, MedusaDraft):
        return MedusaStage(draft, target, stage.losses, decay=stage.decay)
    return Stage(
        draft,
        target,
        stage.losses,
        self_fed=stage.self_fed,
        noise=stage.noise,
        relative_noise=stage.relative_noise,
        decay=stage.decay,
    )


def settings_of_stage(
    stage: StageRecipe, place: Path, clock: Callable[[], float], times: int = 1
) -> Settings:
    """A stage in the trainer's words.

    Args:
        place: folder of the stage.
        times: by which steps and minutes are more.
    """
    return Settings(
        place,
        stage.learning_rate,
        budget_s=times * stage.minutes * 60 or None,
        budget_steps=times * stage.steps or None,
        warmup_share=stage.warmup,
        weight_decay=stage.weight_decay,
        matrix_rate=stage.muon,
        clip_norm=stage.clip,
        clip_value=stage.clip_value,
        autocast=stage.bf16,
        accumulate=stage.accumulate,
        ema=stage.ema,
        evaluate_s=times * stage.evaluate_minutes * 60,
        evaluate_steps=times * stage.evaluate_steps,
        watch=WATCHED,
        patience=stage.patience,
        clock=clock,
    )


def heldout_numbers(
    draft: Any, target: Target, heldout: Sequence[Sample], stage: StageRecipe
) -> dict[str, float]:
    """What `judged` finds, as logs call it."""
    found = judged(draft, target, heldout, stage.positions)
    return {f"{HELDOUT}_{name}": value for name, value in found.items()}


def names_of(samples: Sequence[Sample]) -> str:
    """What a batch is called, for messages."""
    return ", ".join(sample.key for sample in samples)


def judged(
    draft: Any, target: Target, samples: Sequence[Sample], positions: int
) -> dict[str, float]:
    """What greedy chains accept of samples.

    Args:
        positions: of what is run at once, as of a stage.
    """
    measure: Any = medusa_acceptance if isinstance(draft, MedusaDraft) else acceptance
    was = draft.training
    draft.eval()
    parts, counts = [], []
    batches = Batches(samples, 8, 0, positions)
    for start in range(0, len(samples), batches.size):
        for group in batches.load(range(start, min(start + batches.size, len(samples)))):
            parts.append(measure(draft, target, group))
            counts.append(Stage.weight(group))
    draft.train(was)
    found = joined(parts, counts)
    return {k: v for k, v in found.items() if k not in ("cycles", "said")}


def chosen_tree(
    draft: Any,
    target: Target,
    learnt: Sequence[Sequence[Question]],
    max_new_tokens: int,
    path: Path,
) -> TreeShape:
    """The tree that decodes fastest on this machine, on some of the questions learnt from.

    Args:
        path: of a file that keeps it; what was chosen is not chosen again.
    """
    if path.exists():
        return TreeShape(**json.loads(path.read_text()))
    requests = timed_requests(learnt, max_new_tokens)
    print(
        f"choosing the fastest of {len(SHAPES)} trees on {len(requests)} questions; the draft is"
        " written already, and does without if this is interrupted",
        flush=True,
    )
    own = copy.deepcopy(draft).to(target.dtype)
    total = (ROUNDS + 1) * len(SHAPES) * len(requests)
    with warnings.catch_warnings(), Progress("trees", total, "answers") as progress:
        # That little is accepted was said as held-out acceptance.
        warnings.filterwarnings("ignore", "of draft", UserWarning)
        best = fastest_tree(
            lambda shape: Engine(target, own, tree=shape),
            SHAPES,
            requests,
            rounds=ROUNDS,
            answered=lambda: progress.add(1, 1),
        )
    write_json(path, asdict(best))
    return best


def timed_requests(learnt: Sequence[Sequence[Question]], max_new_tokens: int) -> list[Request]:
    """Some of the questions that were learnt from, greedily: what trees and drafts are timed on."""
    each = -(-ASKED // len(learnt))
    some = [q for group in learnt for q in group[:: -(-len(group) // each)]]
    longest = min(max_new_tokens, LONGEST)
    return [replace(question, temperature=0.0).request(longest, 0) for question in some]


def finish(run: Run, found: Mapping[str, float], tree: TreeShape | None = None) -> None:
    """Write the draft, its card, and where it comes from."""
    recipe, answers = run.recipe, run.answers
    counts = {name: len(one) for name, one in answers.items()}
    skipped = {name: len(one.errors) for name, one in answers.items() if one.errors}
    said = ", ".join(f"{name} ({count} answers)" for name, count in counts.items())
    lengths = statistics.fmean(
        [len(a.token_ids) for one in answers.values() for a in one.values()] or [0]
    )
    stages = "\n".join(
        f"- {stage.name}: {', '.join(stage.data)}; {stage.steps or stage.minutes} "
        f"{'steps' if stage.steps else 'minutes'} of {stage.batch} at {stage.learning_rate},"
        f" losses {stage.losses}, {stage.self_fed} self-fed passes"
        for stage in recipe.stages
    )
    others = ", ".join(run.origin.get("together", ()))
    together = f" Trained together with those of {others}, around one adapter." if others else ""
    card = Card(
        target=recipe.target,
        data=f"The target's own answers: {said}, {lengths:.0f} tokens each on average."
        + (f" Skipped: {skipped}." if skipped else ""),
        recipe=f"{stages}\n\nSeed {recipe.seed}.{together}",
        acceptance={"held out, greedy chain": found["acceptance_length"]},
        licence=None if run.init is None else licence(locate(run.init, "draft")),
        tree=None if tree is None else asdict(tree),
    )
    fresh, kept = run.folder / "draft.tmp", run.folder / "draft"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    if run.init is not None:
        carry_licence(locate(run.init, "draft"), fresh)
    save_pretrained(copy.deepcopy(run.draft).to(torch.bfloat16), fresh, card, name=str(kept))
    facts = {
        "answers": counts,
        "skipped": skipped,
        "heldout": dict(found),
    }
    origin, told = run.origin, kept / "provenance.json"
    # Weights that are written again, as when a tree is chosen anew, come from where they came from.
    if told.exists() and fingerprint(kept) == fingerprint(fresh):
        origin = json.loads(told.read_text(encoding="utf-8"))
    write_json(fresh / "provenance.json", {**origin, **facts})
    replace_folder(fresh, kept)
