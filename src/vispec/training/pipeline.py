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
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from vispec.checkpoints.export import carry_licence
from vispec.checkpoints.files import fingerprint, licence, locate
from vispec.decoding.engine import Engine, Request
from vispec.decoding.planner import CHAINS, TREES, fastest_tree
from vispec.decoding.tree import TreeShape
from vispec.errors import SettingsError, VispecError
from vispec.hub import Card, save_pretrained
from vispec.loading_drafts import load_draft
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.targets import Target
from vispec.training.curves import draw
from vispec.training.distill import Answers, Question, digest, distill, read_answers
from vispec.training.drafts import begin, check_draft, refuse_unfit
from vispec.training.features import Online, Store, collect
from vispec.training.progress import Progress
from vispec.training.provenance import provenance
from vispec.training.questions import questions, refuse_shared
from vispec.training.recipe import HELDOUT, Recipe
from vispec.training.stages import claim_stage, judged, run_stage
from vispec.writing import replacing, write_json

ASKED, LONGEST, ROUNDS = 12, 64, 2
"""Questions that trees and drafts are timed on, tokens of their answers, and how often."""
SHAPES = (*CHAINS[2::2], *TREES)
"""Where every step costs a start of its own, and few guesses are wrong, a chain may be faster."""


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
    if init is not None:
        refuse_unfit(recipe, init)
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
        **provenance(command, cache / "answers", asked),
        "questions": facts["questions"],
        "processes": state.num_processes,
        "recipe": asdict(recipe),
    }
    return Run(recipe, folder, target, draft, asked, answers, data, origin, init)


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
    """Keep a folder's answers and features to recipes that they are right for.

    Other recipes may have other questions beside those that they share.

    Returns:
        what they depend on.
    """
    common = {
        **identity(recipe.target),
        "features": recipe.features,
        "max_new_tokens": recipe.max_new_tokens,
    }
    asking = {name: digest(group, recipe.max_new_tokens) for name, group in asked.items()}
    claim(folder, common, "cache.json")
    for name, mark in asking.items():
        what = f"what [data.{name}] asks (rows, their order, temperature, pictures)"
        claim(folder, {what: mark}, f"cache-{name}.json")
    return {**common, "questions": asking}


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
        f"choosing the fastest of {len(SHAPES)} trees on {len(requests)} questions, for which the"
        " machine should be idle; the draft is written already, and has a common tree if this is"
        " interrupted",
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
    damaged = {
        name: len(files)
        for name, one in answers.items()
        if (files := [*one.damaged, *getattr(run.data[name], "damaged", ())])
    }
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
        data=f"The target's own answers: {said}, {lengths:.0f} tokens each on average; those of"
        f" {HELDOUT} were not learnt from."
        + (f" Skipped: {skipped}." if skipped else "")
        + (f" Damaged files and samples left out: {damaged}." if damaged else ""),
        recipe=f"{stages}\n\nSeed {recipe.seed}.{together}",
        acceptance={"held out, greedy chain": found["acceptance_length"]},
        licence=None if run.init is None else licence(locate(run.init, "draft")),
        tree=None if tree is None else asdict(tree),
    )
    facts = {
        "answers": counts,
        "skipped": skipped,
        "damaged": damaged,
        "heldout": dict(found),
    }
    kept, origin = run.folder / "draft", run.origin
    told = kept / "provenance.json"
    with replacing(kept) as fresh:
        if run.init is not None:
            carry_licence(locate(run.init, "draft"), fresh)
        save_pretrained(copy.deepcopy(run.draft).to(torch.bfloat16), fresh, card, name=str(kept))
        # Weights written again, as when a tree is chosen anew, come from where they came from.
        if told.exists() and fingerprint(kept) == fingerprint(fresh):
            origin = json.loads(told.read_text(encoding="utf-8"))
        write_json(fresh / "provenance.json", {**origin, **facts})
