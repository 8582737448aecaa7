"""How good the embedded pair is: what its target sees, and whether its draft's acceptance is real.

    python -m vispec.evaluation.embedded --data DIR --out benchmarks/results/embedded-quality.json

Answers held-out questions about scenes, and about photographs where the data folder has them, with
their own picture and with another one; then compares what the draft accepts with a table of bigrams
and with prompt lookup on the same answers. The table is made of answers to other questions: with
``--answers``, a folder ``answers/SOURCE`` of its training, of all that the draft learnt from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.engine import Engine
from vispec.decoding.planner import CHAINS, TREES
from vispec.errors import VispecError
from vispec.evaluation import baselines
from vispec.evaluation.conditions import commit, conditions, source
from vispec.evaluation.items import TASKS, Item, held_out, training, word_items
from vispec.evaluation.quality import answers, quality, read
from vispec.loading import load
from vispec.training.distill import read_answers
from vispec.training.recipes.embedded_questions import task_of

ADVANTAGE = 1.5
"""How much more than the better table the draft should accept."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded", help="'embedded' or a folder")
    parser.add_argument("--draft", default="embedded", help="'embedded', 'none' or a folder")
    parser.add_argument("--data", type=Path, help="folder with flickr8k/, for photographs")
    parser.add_argument("--count", type=int, default=100, help="held-out items a task (100)")
    parser.add_argument("--table", type=int, default=800, help="answers a task for the table (800)")
    parser.add_argument("--answers", type=Path, help="folder of answers to make it of instead")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use (2)")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    given = parser.parse_args(arguments)
    try:
        known = learnt(given.answers) if given.answers else None
    except (VispecError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(given.threads)
    # Now: files may change while this runs, but not what was imported.
    depends = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": conditions(),
        "source": source("src"),
    }

    engine = load(given.target, None if given.draft == "none" else given.draft, max_batch=16)
    items = held_out(given.data, given.count)
    if not any(item.task == "photo" for item in items):
        _say(f"no photographs in {given.data}: their rows are left out")
    asked = [*items, *word_items("heldout", given.count)]
    _say(f"answering {len(asked)} questions, then the same about other pictures")
    said = answers(engine, asked)
    measures = quality(engine, asked, said)
    rows = []
    if engine.draft is not None:
        if known is None:
            _say(f"answering {given.table} training questions a task for the table of bigrams")
            others = training(given.data, given.table)
            known = by_task([item.task for item in others], answers(engine, others))
        rows = acceptance(engine, asked, said, known)
    report = {
        "command": f"python -m vispec.evaluation.embedded --count {given.count}"
        + (" --answers ANSWERS" if given.answers else f" --table {given.table}")
        + f" --threads {given.threads}"
        + (" --data DIR" if given.data else ""),
        **depends,
        "weights": {
            role: fingerprint(locate(name, role))
            for role, name in (("target", given.target), ("draft", given.draft))
            if name != "none"
        },
        "quality": [measure.as_dict() for measure in measures],
        "acceptance": rows,
        "samples": samples(asked, read(engine, said)),
    }
    show(report)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def acceptance(
    engine: Engine,
    items: Sequence[Item],
    said: Sequence[Sequence[int]],
    known: Mapping[str, Sequence[Sequence[int]]],
) -> list[dict[str, Any]]:
    """By task, how much the draft, a table of bigrams and prompt lookup accept of greedy answers.

    Args:
        engine: with its draft.
        items: what was asked.
        said: the target's greedy answers.
        known: answers to other questions, by task, from which tables are made.
    """
    anything = baselines.Bigrams(list(chain(*known.values())), engine.target.vocab_size)
    rows = []
    for task in TASKS:
        here = [i for i, item in enumerate(items) if item.task == task]
        if not here:
            continue
        _say(f"measuring acceptance: {task}")
        prompts = [engine.target.encode(items[i].question, [items[i].image]) for i in here]
        texts = [said[i] for i in here]
        drawn = answers(engine, [items[i] for i in here], temperature=1.0)
        stats = [
            engine.generate(
                items[i].question, [items[i].image], max_new_tokens=len(said[i]), temperature=0
            ).stats
            for i in here
        ]
        passes = sum(s.target_passes for s in stats)
        # The table of this task alone or of all, whichever is better; with as many nodes for the
        # target to verify as the draft has, and with whichever tree suits it best.
        alike = known.get(task, [])
        tables = (anything, baselines.Bigrams(alike, engine.target.vocab_size))
        rates = {
            shape: max(baselines.bigram_acceptance(table, texts, shape) for table in tables)
            for shape in {engine.tree, *TREES, *CHAINS}
        }
        bigrams = rates[engine.tree]
        lookup = baselines.lookup_acceptance(prompts, texts)
        draft = sum(s.new_tokens - 1 for s in stats) / max(1, passes)
        rows.append(
            {
                "task": task,
                "items": len(here),
                "table": len(alike),
                "tokens": sum(map(len, texts)),
                "bits_per_token": baselines.bits_per_token(engine.target, prompts, drawn),
                "bigrams": bigrams,
                "bigrams_any_tree": max(rates.values()),
                "prompt_lookup": lookup,
                "draft": draft,
                "advantage": draft / max(bigrams, lookup),
                "reached": draft >= ADVANTAGE * max(bigrams, lookup),
            }
        )
    return rows


def by_task(tasks: Iterable[str], said: Iterable[Sequence[int]]) -> dict[str, list[Sequence[int]]]:
    """Answers, sorted by the task of each."""
    found: dict[str, list[Sequence[int]]] = {}
    for task, ids in zip(tasks, said, strict=True):
        found.setdefault(task, []).append(ids)
    return found


def learnt(folder: Path) -> dict[str, list[Sequence[int]]]:
    """By task, the answers that a draft of the embedded target learnt from.

    Raises:
        VispecError: if there are none.
        ValueError: if they are to other questions than the embedded draft's.
    """
    found = read_answers(folder)
    if not found:
        raise VispecError(f"{folder} has no answers-*.parquet; give a training's answers/SOURCE")
    return by_task(map(task_of, found), (found[key].token_ids for key in found))


def samples(items: Sequence[Item], said: Sequence[str], each: int = 5) -> list[dict[str, str]]:
    """The first few answers of every task; captions of photographs stay in their data set."""
    found = []
    for task in TASKS:
        here = [(i, s) for i, s in zip(items, said, strict=True) if i.task == task][:each]
        for item, text in here:
            true = {} if task == "photo" else {"true": item.answer}
            found.append({"task": task, "question": item.question, **true, "said": text})
    return found


def show(report: dict[str, Any]) -> None:
    """Print both tables."""
    console = Console()
    table = Table("measure", "items", "true picture", "another", "goal", "", box=box.SIMPLE)
    table.title = "What the target sees (held-out items)"
    for m in report["quality"]:
        goal = []
        if m["least"] is not None:
            goal.append(f"{'at most' if m['lower_is_better'] else 'at least'} {m['least']:.2f}")
        if m["gain"] is not None:
            goal.append(f"+{m['gain']:.2f}")
        verdict = ("reached" if m["reached"] else "not reached") if goal else ""
        table.add_row(
            m["name"],
            str(m["items"]),
            f"{m['true']:.3f}",
            f"{m['swapped']:.3f}",
            ", ".join(goal),
            verdict,
        )
    console.print(table)
    if report["acceptance"]:
        table = Table(
            "task", "bits a token (sampled)", "bigrams", "any tree", "prompt lookup", "draft",
            "advantage", "",
            box=box.SIMPLE,
        )  # fmt: skip
        table.title = f"Tokens a pass on the same greedy answers (goal: {ADVANTAGE}x the better)"
        for r in report["acceptance"]:
            table.add_row(
                r["task"],
                f"{r['bits_per_token']:.2f}",
                f"{r['bigrams']:.2f}",
                f"{r['bigrams_any_tree']:.2f}",
                f"{r['prompt_lookup']:.2f}",
                f"{r['draft']:.2f}",
                f"{r['advantage']:.2f}x",
                "reached" if r["reached"] else "not reached",
            )
        console.print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
