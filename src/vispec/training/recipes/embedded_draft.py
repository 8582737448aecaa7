"""A draft of the embedded target, measured: its model card and its licence.

    python -m vispec.training.recipes.embedded_questions --data DIR --out questions
    vispec train embedded-eagle3 --out runs/eagle3
    vispec train embedded --out runs/embedded --init runs/eagle3/draft
    python -m vispec.training.recipes.embedded_draft --run runs/embedded --begun runs/eagle3 \\
        --questions questions --out src/vispec/models/draft
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vispec.adapters import QueryAdapter
from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.drafts.eagle3 import Eagle3Draft
from vispec.drafts.sequential import SequentialDraft
from vispec.errors import SettingsError
from vispec.loading import load
from vispec.training.distill import Question
from vispec.training.questions import Source, questions
from vispec.training.recipe import HELDOUT
from vispec.training.recipes.card import judged, table, training_of, write_licence
from vispec.training.recipes.embedded_questions import task_of

CARD = """# {title}

{what} ({parameters:.2f} M parameters) for the embedded target, trained by `{command}`
on answers that the target itself wrote: {answers}. Seed {seed}. Two thirds of the questions with a
picture were answered greedily, everything else at temperature 1.

**For research use only: trained partly on research-only photographs (Flickr8k, DAQUAR).**

## Training

{training}

Share of held-out positions behind which one, two and three tokens are guessed right; all held-out
questions have a picture:

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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder that vispec train filled")
    parser.add_argument("--begun", type=Path, help="folder of the run whose draft it began with")
    parser.add_argument("--questions", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--out", type=Path, required=True, help="where the draft is put")
    options = parser.parse_args(argv)

    trained = options.run / "draft"
    stated = json.loads((trained / "provenance.json").read_text())
    engine = load(stated["recipe"]["target"], trained)
    asked = questions(Source(str(options.questions / f"{HELDOUT}.jsonl")), HELDOUT)
    if not isinstance(engine.draft, SequentialDraft):
        raise SettingsError(f"{trained} is neither EAGLE nor EAGLE-3, which this card is for")
    measured = acceptance(engine, asked)
    blind = acceptance(engine, [replace(question, images=()) for question in asked])
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "provenance.json"):
        shutil.copyfile(trained / name, options.out / name)
    write_licence(options.out)
    runs = [options.run] if options.begun is None else [options.begun, options.run]
    text = card(engine.draft, engine.tree, runs, measured, blind)
    (options.out / "README.md").write_text(text)
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
    draft: SequentialDraft,
    tree: TreeShape,
    runs: Sequence[Path],
    measured: Mapping[str, Mapping[str, float]],
    blind: Mapping[str, Mapping[str, float]],
) -> str:
    """The text of the draft's model card.

    Args:
        runs: folders of its training, the last of them its own.
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
    origins = [json.loads((run / "draft" / "provenance.json").read_text()) for run in runs]
    stages = [
        (run / "stages", stage)
        for run, origin in zip(runs, origins, strict=True)
        for stage in origin["recipe"]["stages"]
    ]
    curve = [
        (
            stage["name"],
            line["step"],
            f"{line['elapsed_s'] / 60:.0f}",
            *(f"{line[f'heldout_accepted_{step}']:.3f}" for step in (1, 2, 3)),
        )
        for work, stage in stages
        for line in judged(work, stage["name"], "heldout_accepted_1", 6)
    ]
    stated = origins[-1]
    learnt = {name for _, stage in stages for name in stage["data"]}
    said = [f"{stated['answers'][name]} to the questions {name}" for name in sorted(learnt)]
    adapter, layer = draft.adapter, "one decoder layer"
    title = f"An {'EAGLE-3' if isinstance(draft, Eagle3Draft) else 'EAGLE'} draft"
    if draft.token_map is not None:
        layer += f" over {draft.token_map.numel()} of the target's tokens"
    what = f"{title}: {layer}, which reads every image token"
    if isinstance(adapter, QueryAdapter):
        title, count = "The embedded draft", adapter.q.shape[0]
        queries = "1 query" if count == 1 else f"{count} queries"
        beside = ", beside every image token" if adapter.keeps else ""
        what = f"A ViSpec draft: {layer}, and an adapter of {queries}{beside}"
    return CARD.format(
        title=title,
        what=what,
        command="`, then `".join(origin["command"] for origin in origins),
        seed=stated["recipe"]["seed"],
        parameters=sum(p.numel() for p in draft.parameters()) / 1e6,
        answers=" and ".join(said),
        training="\n".join(training_of(work, [stage["name"]]) for work, stage in stages),
        curve=table(("stage", "step", "minutes", "one", "two", "three"), curve),
        tree=f"{tree.size} nodes, depth {tree.depth}, width {tree.width}",
        rows=table(header, rows),
    )


if __name__ == "__main__":
    main()
