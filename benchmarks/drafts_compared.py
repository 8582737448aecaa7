"""Adapters, ways of training and kinds of drafts, compared on the embedded target.

    python -m vispec.training.recipes.embedded_questions --data DIR --out questions
    python benchmarks/drafts_compared.py --questions questions --work DIR \\
        --out benchmarks/results/drafts.json

Every arm is trained for the same minutes of one core (of its own computing, whatever else the
machine does), on the same answers and features, with the same seeds, at learning rates and with
losses that ten trials of six minutes chose on ViSpec's adapter; some are trained at half and at
twice the rate, too, which tells whether that was fair. (One takes another's steps instead, and one
goes on from another's draft.) Then ViSpec's and the others that lead, four
in all, get two further seeds. All of them but those at other rates answer the same held-out
questions by turns, plainly decoded answers among them.

`--part 1/2` and `--part 2/2`, at once, train half of the arms each; without it, what is not yet
trained is trained, and everything measured. All of it resumes: an arm that is trained is not
trained again, a question that all have answered is not asked again, and what was measured of every
single answer is kept, so that differences can be judged question by question.

Nothing else may run while answers are timed, in its last part.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drafts_report import ALONE, BESIDE, EMBEDDED, FULL
from small_model import Small, train_small
from vispec.adapters import settings_of
from vispec.adapters.elastic import ElasticAdapter
from vispec.adapters.hidden import HiddenAdapter
from vispec.checkpoints.files import fingerprint, locate
from vispec.checkpoints.registry import read
from vispec.decoding.engine import Engine
from vispec.decoding.planner import fastest_tree
from vispec.decoding.tree import TreeShape
from vispec.drafts.compression import compress
from vispec.drafts.hybrid import HybridDraft
from vispec.drafts.language_model import LanguageModelDraft
from vispec.drafts.lookup import LookupDraft
from vispec.evaluation.conditions import commit, conditions, source
from vispec.hub import save_pretrained
from vispec.loading_drafts import load_draft
from vispec.loading_targets import load_target
from vispec.runs import claim
from vispec.training.curves import read_log
from vispec.training.distill import Question, digest, distill, read_answers
from vispec.training.draft import acceptance
from vispec.training.drafts import learnt_tokens, new_draft
from vispec.training.features import Sample, Store, collect
from vispec.training.losses import MULTIMODAL_STAGE
from vispec.training.provenance import provenance
from vispec.training.questions import Source, questions
from vispec.training.recipe import RECIPES, DraftRecipe, Recipe, StageRecipe, read_recipe
from vispec.training.recipes.embedded_questions import task_of
from vispec.training.selection import select
from vispec.training.stages import run_stage
from vispec.writing import replacing, write_json

GROUPS = ("heldout", "text", "multimodal")
"""Questions that drafts are judged by and learn from."""
LAYERS = (2, 16, 29)
"""Features that EAGLE-3 and fused drafts read; the last hidden states are kept beside them."""
TREE = TreeShape(8, 5, 2)
CANDIDATES = (
    TreeShape.chain(2),
    TreeShape.chain(4),
    TREE,
    TreeShape(12, 8, 2),
    TreeShape(16, 10, 2),
)
QUERY = {"kind": "query", "heads": 3, "queries": 2}
MLP = {"kind": "mlp", "inner": 96}
POOLING = {"kind": "pooling", "keep": 16}
PRUNING = {"kind": "pruning", "keep": 16}
CONVOLUTION = {"kind": "convolution", "stride": 9}
RESAMPLER = {"kind": "resampler", "heads": 3, "queries": 16, "inner": 384}
TEXT, SHOWN = read_recipe(RECIPES / "embedded-eagle.toml").stages
TEXT = replace(TEXT, minutes=0.05)
SHOWN = replace(SHOWN, minutes=0.95, self_fed=1)
"""As what became the built-in draft, but with as many self-fed passes as ViSpec's paper, one: more
pay off late."""
TOKENS = replace(
    SHOWN,
    losses={"soft_cross_entropy": 1.0},
    minutes=1.0,
    relative_noise=0.0,
)
"""Of drafts that guess tokens rather than features."""


@dataclass(frozen=True)
class Arm:
    """What is trained, and how; the minutes of its stages are shares of the budget.

    Attributes:
        group: what it is compared in: `adapters`, `training`, `kinds` or `rates`.
        draft: what a recipe calls a draft, or a small model that drafts.
        start: the arm whose trained draft it begins with, with an adapter of its own.
        steps_of: the arm that it takes as many steps as, in whatever time.
    """

    group: str
    draft: DraftRecipe | Small
    stages: tuple[StageRecipe, ...] = (TEXT, SHOWN)
    start: str = ""
    steps_of: str = ""


def with_adapter(adapter: Any) -> Arm:
    return Arm("adapters", DraftRecipe(adapter=adapter))


VISPEC = DraftRecipe(adapter=QUERY)
EAGLE3 = DraftRecipe(kind="eagle3", aux_layers=[*LAYERS])
ARMS: dict[str, Arm] = {
    "query": with_adapter(QUERY),
    "none": with_adapter(None),
    "hidden": with_adapter({"kind": "hidden"}),
    "pooling": with_adapter(POOLING),
    "resampler of rows": with_adapter({**RESAMPLER, "rows": True}),
    BESIDE: with_adapter({**QUERY, "queries": 1, "beside": True}),
    "linear": with_adapter({"kind": "linear"}),
    "mlp of 2": with_adapter(MLP),
    "mlp of 3": with_adapter({**MLP, "layers": 3}),
    "transformer": with_adapter({"kind": "transformer", "heads": 3, "inner": 384}),
    "pruning": with_adapter(PRUNING),
    "convolution": with_adapter(CONVOLUTION),
    "resampler": with_adapter(RESAMPLER),
    "elastic": with_adapter(
        {"kind": "elastic", "parts": [PRUNING, POOLING, CONVOLUTION, RESAMPLER, {"kind": "hidden"}]}
    ),
    "pooling and mlp": with_adapter([POOLING, MLP]),
    "query of 8": with_adapter({**QUERY, "queries": 8}),
    "without the text stage": Arm("training", VISPEC, (replace(SHOWN, minutes=1.0),)),
    "without self-fed passes": Arm("training", VISPEC, (TEXT, replace(SHOWN, self_fed=0))),
    "three self-fed passes": Arm("training", VISPEC, (TEXT, replace(SHOWN, self_fed=3))),
    "the paper's losses": Arm("training", VISPEC, (TEXT, replace(SHOWN, losses=MULTIMODAL_STAGE))),
    "fused features": Arm("training", DraftRecipe(adapter=QUERY, aux_layers=[*LAYERS])),
    ALONE: Arm(
        "training",
        DraftRecipe(adapter=RESAMPLER),
        (replace(SHOWN, minutes=1.0, train="adapter"),),
        start="pooling",
    ),
    "text alone": Arm("kinds", DraftRecipe(), (replace(TEXT, minutes=1.0),)),
    "eagle3": Arm("kinds", EAGLE3, (replace(TOKENS, self_fed=3),)),
    "medusa": Arm("kinds", DraftRecipe(kind="medusa", heads=5), (replace(TOKENS, decay=0.8),)),
    "small model": Arm("kinds", Small(), ()),
    "small model, blind": Arm("kinds", Small(sees=False), ()),
    "small model, other words": Arm("kinds", Small(sees=False, vocabulary=1024), ()),
    "eagle3 of 1024 tokens": Arm(
        "kinds", replace(EAGLE3, vocabulary=1024), (replace(TOKENS, self_fed=3),)
    ),
    "half the time on text": Arm(
        "training", VISPEC, (replace(TEXT, minutes=0.5), replace(SHOWN, minutes=0.5))
    ),
    "none, as many steps": Arm("training", DraftRecipe(), steps_of="query"),
}
RATES = {"half": 0.5, "twice": 2.0}
ARMS |= {
    f"{name}, {word} the rate": replace(
        ARMS[name],
        group="rates",
        stages=tuple(
            replace(stage, learning_rate=stage.learning_rate * factor)
            for stage in ARMS[name].stages
        ),
    )
    for name in ("none", BESIDE, "mlp of 2", "eagle3", "medusa")
    for word, factor in RATES.items()
}

COMMAND = "python benchmarks/drafts_compared.py"
PROVENANCE = "provenance.json"
"""Beside every trained arm."""
CODE = tuple(f"src/vispec/{part}" for part in ("adapters", "decoding", "drafts", "targets"))
"""What answers are timed of."""
LONGEST = 112
"""Tokens of an answer, at most."""
COUNTS = ("new_tokens", "target_passes", "accepted_tokens")
TIMES = ("vision_s", "prefill_s", "read_s", "draft_s", "verify_s", "overhead_s")
"""What is kept of every answer's `Stats`."""
SAME = "same_text"
"""Whether it is that of plain decoding."""
Measured = dict[str, list[Any]]
"""Of a way of drafting: each of these, for every question in their order."""
Trained = tuple[str, int, Path]
"""An arm's name, its seed, and its folder."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--questions", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--work", type=Path, required=True, help="answers, features, drafts")
    parser.add_argument("--out", type=Path, required=True, help="the result")
    parser.add_argument("--minutes", type=float, default=10, help="of one core, for an arm (10)")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--leaders", type=int, default=4, help="adapters with three seeds (4)")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="of the arms, to train alone")
    options = parser.parse_args(argv)
    part, parts = (int(number) for number in options.part.split("/"))
    for name in options.arms:
        needed = ARMS[name].start or ARMS[name].steps_of
        if needed and needed not in options.arms and not arm_folder(options, needed, 0).exists():
            parser.error(f"--arms has '{name}', which needs '{needed}'")

    target = load_target(options.target, dtype="float32")
    stores = {name: options.work / "features" / name for name in GROUPS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for made in (answer, look):
        made(target, options, part - 1, parts)
        (options.work / f"{made.__name__}-{part}").touch()
        for other in range(parts):
            until(options.work / f"{made.__name__}-{other + 1}")
    trained: list[Trained] = []
    for runs in (first_seeds, further_seeds):
        trained += (now := runs(options))
        for one in now[part - 1 :: parts]:
            train_arm(target, one, stores, options)
    torch.set_num_threads(threads)
    if parts == 1:
        measure(target, trained, options)


def first_seeds(options: argparse.Namespace) -> list[Trained]:
    """Every arm once."""
    return [(name, 0, arm_folder(options, name, 0)) for name in options.arms]


def further_seeds(options: argparse.Namespace) -> list[Trained]:
    """Of the adapters that lead; waits until all of them are trained."""
    first = [one for one in first_seeds(options) if ARMS[one[0]].group == "adapters"]
    for _, _, folder in first:
        until(folder / "draft")
    lengths = {
        name: read_log(folder / "stages" / SHOWN.name)[-1]["heldout_acceptance_length"]
        for name, _, folder in first
    }
    # What others are compared with is always among them.
    best = sorted(lengths, key=lambda name: (name != FULL, -lengths[name]))[: options.leaders]
    return [(name, seed, arm_folder(options, name, seed)) for name in best for seed in (1, 2)]


def arm_folder(options: argparse.Namespace, name: str, seed: int) -> Path:
    work: Path = options.work
    return work / "arms" / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}"


def until(path: Path) -> Path:
    """It, once it is there: another part may be making it."""
    while not path.exists():
        print(f"waiting for {path}", flush=True)
        time.sleep(20)
    return path


def asked_of(options: argparse.Namespace, name: str) -> list[Question]:
    """The questions of a group."""
    return questions(Source(str(options.questions / f"{name}.jsonl")), name)


def answer(target: Any, options: argparse.Namespace, worker: int, workers: int) -> None:
    """Let the target answer."""
    helper, tree = load_draft("embedded", target)
    engine = Engine(target, helper, tree=tree, max_batch=32)
    for name in GROUPS:
        folder, group = options.work / "answers" / name, asked_of(options, name)
        distill(engine, group, folder, max_new_tokens=LONGEST, worker=worker, workers=workers)


def look(target: Any, options: argparse.Namespace, worker: int, workers: int) -> None:
    """Keep what it saw."""
    for name in GROUPS:
        answers = read_answers(options.work / "answers" / name)
        folder, group = options.work / "features" / name, asked_of(options, name)
        collect(target, group, answers, folder, layers=LAYERS, worker=worker, workers=workers)


def train_arm(
    target: Any, one: Trained, stores: Mapping[str, Path], options: argparse.Namespace
) -> None:
    """Train an arm to its end, if it is not."""
    (name, seed, folder), minutes = one, options.minutes
    arm = ARMS[name]
    claim(folder, {"arm": asdict(arm), "seed": seed, "minutes": minutes})
    if (folder / "draft").exists():
        return
    print(f"training {folder.name}", flush=True)
    origin = provenance(COMMAND, options.work / "answers", ("text", "multimodal", "heldout"))
    write_json(folder / PROVENANCE, origin)
    layered = isinstance(arm.draft, DraftRecipe) and arm.draft.aux_layers is not None
    data = {name: Store(path, target, layered=layered) for name, path in stores.items()}
    heldout: list[Sample] = list(data["heldout"])
    if isinstance(arm.draft, Small):
        train_small(target, arm.draft, [data["multimodal"]], heldout, folder, minutes, seed=seed)
        return
    token_map = None
    if arm.draft.vocabulary:
        answers = {name: read_answers(options.work / "answers" / name) for name in GROUPS}
        token_map = learnt_tokens(answers, arm.draft.vocabulary, target)
    draft: Any = new_draft(target, arm.draft, seed=seed, token_map=token_map).float()
    if arm.start:
        begun: Any = read(until(arm_folder(options, arm.start, seed) / "draft")).float()
        begun.adapter = draft.adapter
        draft = begun
    recipe = Recipe(target="embedded", data={}, stages=[], draft=arm.draft, seed=seed)
    for stage in arm.stages:
        length = {"minutes": stage.minutes * minutes}
        if arm.steps_of:
            other = arm_folder(options, arm.steps_of, seed)
            until(other / "draft")
            log = read_log(other / "stages" / stage.name)
            length = {"minutes": 0.0, "steps": log[-1]["step"]}
        whole = replace(stage, **length, evaluate_minutes=minutes / 6)
        own = [data[name] for name in stage.data]
        clock = time.process_time
        run_stage(draft, target, whole, own, heldout, folder, recipe, clock, origin)
    keep(draft, folder)


def keep(draft: Any, folder: Path) -> None:
    """A trained draft in `folder/draft`, which is there whole or not at all."""
    with replacing(folder / "draft") as fresh:
        save_pretrained(draft.to(torch.bfloat16).eval(), fresh)


def measure(target: Any, trained: Sequence[Trained], options: argparse.Namespace) -> None:
    """Answer the held-out questions with every draft by turns, and write what came of it."""
    asked = asked_of(options, "timed")
    shown = {"target": locate(options.target), "draft": locate("embedded", "draft")}
    weights = {name: fingerprint(folder) for name, folder in shown.items()}
    claim(options.work, {"tree": asdict(TREE), "weights": weights["target"]}, "compared.json")
    drafts = {
        f"{name}, seed {seed}": load_draft(folder / "draft", target)[0]
        for name, seed, folder in trained
        if ARMS[name].group != "rates"
    }
    drafts |= further_drafts(target, drafts, options)
    trees = trees_of(target, drafts, options)
    ways = {"plain": Engine(target)} | {
        label: Engine(target, drafts[name], tree=tree) for label, (name, tree) in trees.items()
    }
    result = {
        "command": COMMAND,
        "minutes": options.minutes,
        "trained_at": {
            f"{name}, seed {seed}": json.loads((folder / PROVENANCE).read_text())["commit"]
            for name, seed, folder in trained
        },
        "commit": commit(),
        "weights": weights,
        "date": time.strftime("%Y-%m-%d"),
        "machine": conditions(),
        "questions": [question.key for question in asked],
        "arms": {name: asdict(ARMS[name]) for name in options.arms},
        "ways": {
            label: {"tree": asdict(tree), **size(drafts[name])}
            for label, (name, tree) in trees.items()
        },
        "logs": {
            f"{name}, seed {seed}": {
                stage: read_log(folder / "stages" / stage)
                for stage in [stage.name for stage in ARMS[name].stages] or ["whole"]
            }
            for name, seed, folder in trained
        },
        "choices": {
            label.removesuffix(", seed 0"): choices(draft, target, options)
            for label, draft in drafts.items()
            if isinstance(getattr(draft, "adapter", None), ElasticAdapter)
        },
        "measured": ask(ways, asked, options.work / "measured.json"),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def further_drafts(
    target: Any, drafts: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Drafts that need no training of their own."""
    found: dict[str, Any] = {
        "lookup": LookupDraft(),
        EMBEDDED: load_draft("embedded", target)[0],
    }
    query = drafts.get("query, seed 0")
    if query is not None:
        found["query and lookup"] = HybridDraft(query)
        found["query, int8"] = compress(query, "int8")
        found["query, rank 96"] = compress(query, "low_rank", 96)
        found["query, rank 48"] = compress(query, "low_rank", 48)
    blind = drafts.get("text alone, seed 0")
    if blind is not None:  # its stage of training has no pictures, so an adapter makes none of it
        found["text alone, no image tokens"] = copy.deepcopy(blind)
        found["text alone, no image tokens"].adapter = HiddenAdapter(target.hidden_size)
    pooling, other = drafts.get("pooling, seed 0"), drafts.get(f"{ALONE}, seed 0")
    if pooling is not None and other is not None:
        kinds: dict[str, list[Sample]] = {}
        for sample in Store(options.work / "features" / "heldout", target, layered=False):
            kinds.setdefault(task_of(sample.key), []).append(sample)
        adapters = [pooling.adapter, other.adapter]
        found["selector"], lengths = select(pooling, adapters, target, kinds)
        print(f"selector: {dict(zip(kinds, lengths.tolist(), strict=True))}", flush=True)
    return found


def choices(draft: Any, target: Any, options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """How often the gate of an elastic adapter takes which part, by task, of other questions."""
    found: dict[str, dict[str, int]] = {}
    gated: list[torch.Tensor] = []
    parts = [settings_of(part)["kind"] for part in draft.adapter.parts]
    hook = draft.adapter.gate.register_forward_hook(lambda *told: gated.append(told[-1]))
    for sample in Store(options.work / "features" / "heldout", target, layered=False):
        acceptance(draft, target, [sample])
        counts = found.setdefault(task_of(sample.key), dict.fromkeys(parts, 0))
        for logits in gated:
            for part in logits.argmax(-1).tolist():
                counts[parts[part]] += 1
        gated.clear()
    hook.remove()
    return found


def trees_of(
    target: Any, drafts: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, tuple[str, TreeShape]]:
    """Ways to draft: which draft, and with what tree.

    All have the same. A step of another kind costs another time, so kinds are measured with the
    tree, too, that is the fastest of a few on questions that arms are judged by, not timed.
    """
    found = {name: (name, TREE) for name in drafts}
    if "query, seed 0" in drafts:
        found["query, chain"] = "query, seed 0", TreeShape.chain(TREE.depth)
    path = options.work / "trees.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    judged = asked_of(options, "heldout")
    some = [*judged[:12], *judged[-4:]]
    requests = [question.request(LONGEST, 0) for question in some]
    kinds = [name for name, arm in ARMS.items() if arm.group == "kinds"]
    first = {f"{name}, seed 0" for name in (FULL, "none", BESIDE, *kinds)}
    for name, draft in drafts.items():
        if name not in first | {"lookup", "query and lookup", EMBEDDED}:
            continue
        own = identity(draft, None, some)
        if known.get(name, {}).get("of") != own:
            print(f"the tree of {name}", flush=True)
            best = fastest_tree(
                lambda shape, draft=draft: Engine(target, draft, tree=shape),  # type: ignore[misc]
                CANDIDATES,
                requests,
                rounds=1,
            )
            known[name] = {"of": own, "tree": asdict(best)}
            write_json(path, known)
        found[f"{name.split(', seed')[0]}, own tree"] = name, TreeShape(**known[name]["tree"])
    return found


def size(draft: Any) -> dict[str, int]:
    """How many numbers a draft has, its adapter among them, and bytes as it is stored."""
    module = module_of(draft)
    parts = {"parameters": module, "adapter_parameters": getattr(module, "adapter", None)}
    found = {
        name: list(p.parameters()) if isinstance(p, nn.Module) else [] for name, p in parts.items()
    }
    counts = {name: sum(p.numel() for p in numbers) for name, numbers in found.items()}
    stored = (p.numel() * (2 if p.is_floating_point() else 1) for p in found["parameters"])
    return {**counts, "bytes": sum(stored)}


def module_of(draft: Any) -> Any:
    """The network that drafts, where one does."""
    draft = draft.draft if isinstance(draft, HybridDraft) else draft
    return draft.model.model if isinstance(draft, LanguageModelDraft) else draft


def identity(draft: Any, tree: TreeShape | None, asked: Sequence[Question]) -> str:
    """What tells one way of answering some questions from all others, in this state of the code."""
    facts = [source(*CODE), asdict(tree or TREE), digest(asked, LONGEST)]
    found = hashlib.sha256(json.dumps(facts).encode())
    module = module_of(draft)
    if isinstance(module, nn.Module):
        for name, tensor in module.state_dict().items():
            numbers = tensor.cpu().reshape(-1).contiguous().view(torch.uint8)
            found.update(name.encode() + numbers.numpy().tobytes())
    return found.hexdigest()[:16]


def ask(ways: Mapping[str, Engine], asked: Sequence[Question], path: Path) -> dict[str, Measured]:
    """Ask every question in every way, by turns; goes on behind what is in the file.

    What was measured of other drafts, trees, questions or code is measured again.
    """
    kept = json.loads(path.read_text()) if path.exists() else {}
    own = {label: identity(engine.draft, engine.tree, asked) for label, engine in ways.items()}
    found: dict[str, Measured] = {}
    for label, name in own.items():
        known = kept.get(label, {})
        fresh: Measured = {name: [] for name in (*COUNTS, *TIMES, SAME)}
        found[label] = known["measured"] if known.get("of") == name else fresh
    begun = min(len(one[SAME]) for one in found.values())
    for one in found.values():  # a way that came later has all asked again
        for numbers in one.values():
            del numbers[begun:]
    for engine in ways.values():
        engine.generate([asked[0].request(8, 0)])
    for place in range(begun, len(asked)):
        said = {}
        # An order of its own for every question: nobody always follows the same neighbour.
        for label in random.Random(place).sample(list(ways), len(ways)):
            (result,) = ways[label].generate([asked[place].request(LONGEST, place)])
            said[label] = result.token_ids
            for name in (*COUNTS, *TIMES):
                found[label][name].append(round(getattr(result.stats, name), 6))
        for label, one in found.items():
            one[SAME].append(said[label] == said["plain"])
        write_json(path, {k: {"of": own[k], "measured": v} for k, v in found.items()})
        print(f"{place + 1} of {len(asked)} questions", flush=True)
    return found


if __name__ == "__main__":
    main()
