"""What speculation gains on the embedded pair, against every way of decoding plainly.

    python benchmarks/embedded_cpu.py --work /tmp/embedded-cpu --out /tmp/embedded-cpu.json

One request at a time: held-out scene questions, scene descriptions and readings, and photographs
with ``--data DIR``; greedily and sampled at temperature 1. The methods take turns on
every item, shuffled, so that a machine that slows down slows all of them. Answers end where the
target ends them. Trees are chosen on other items first.

Every answer is written to the work folder as it comes: the same command goes on after an
interruption, as long as machine and code are the same. Every finished repeat is added to the
result, until it holds as many as ``--repeats`` says: later ones may be of another day and of
another machine, and then the stated spread covers both. To add one to a result that holds three,
from the same code: ``--repeats 4``, with the result as ``--out`` and an empty ``--work``.

Methods
    generate            Hugging Face, its default (dynamic) cache
    generate-static     Hugging Face, a static cache and a compiled forward
    generate-lookup     Hugging Face, prompt lookup
    plain               our loop without a draft
    plain-compiled      the same with compiled passes
    vispec-uncompiled   ViSpec with the tree that it comes with, without compiled passes
    vispec-advised      the same with compiled passes
    eagle-text          compiled trees of EAGLE, trained on text alone
    eagle-text-blind    the same draft, whom no image token reaches
    eagle3              compiled trees of what ViSpec is without its global vector, trained on the
                        same answers for as long
    eagle3-chain        the same draft, one path
    vispec-chain        compiled, one path
    vispec              compiled trees
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from methods import TEMPERATURES, Method, build, compilations, logit_gap, warm_up
from speeds import parts, summarise
from vispec.checkpoints.files import fingerprint, locate
from vispec.errors import VispecError
from vispec.evaluation.conditions import commit, conditions, source
from vispec.evaluation.items import TASKS, Item, held_out
from vispec.loading_targets import load_target
from vispec.runs import claim

SCENES = ("vqa", "caption", "read")
"""Tasks of rendered scenes, for which nothing has to be at hand."""
DRAFTS = Path(__file__).parent / "drafts"
CODE = (
    "src/vispec/adapters",
    "src/vispec/checkpoints",
    "src/vispec/decoding",
    "src/vispec/drafts",
    "src/vispec/evaluation",
    "src/vispec/targets",
    "src/vispec/images.py",
    "src/vispec/loading.py",
    "src/vispec/loading_drafts.py",
    "src/vispec/loading_targets.py",
    "src/vispec/messages.py",
    "src/vispec/training/photos.py",
    "src/vispec/training/scenes.py",
    "src/vispec/training/scene_words.py",
    "benchmarks/embedded_cpu.py",
    "benchmarks/methods.py",
    "benchmarks/speeds.py",
)
"""What the numbers depend on."""
SOFTWARE = ("settings", "python", "torch", "transformers")
"""What all repeats have in common of `conditions`."""


def measure(
    methods: dict[str, Method],
    items: Sequence[Item],
    repeat: int,
    file: Path,
    gap: Callable[[Item, list[int], list[int]], float],
) -> list[dict[str, Any]]:
    """Answer everything once with every method; what `file` holds is not asked again.

    Args:
        gap: how far apart, in logits, an item's two answers are where they part.

    Returns:
        one line an answer.
    """
    lines = [line for line in read_lines(file, list(methods)) if line["repeat"] == repeat]
    done = {_round(line) for line in lines}
    rounds = [(repeat, temperature, i) for temperature in TEMPERATURES for i in range(len(items))]
    begun, waiting = time.monotonic(), [r for r in rounds if r not in done]
    # Shuffled, so that what is left takes as long a round as what is done.
    Random(repeat).shuffle(waiting)
    for count, (_, temperature, index) in enumerate(waiting):
        item, seed = items[index], repeat * len(items) + index
        order = Random(seed).sample(list(methods), len(methods))
        answers, graphs = {}, {}
        for name in order:
            before = compilations()
            answers[name] = methods[name](item, temperature, seed)
            graphs[name] = compilations() - before
        true = answers[_reference(temperature)].token_ids
        fresh = []
        for name, answer in answers.items():
            line = {"repeat": repeat, "temperature": temperature, "item": index, "method": name}
            line |= {"task": item.task, "identical": answer.token_ids == true} | asdict(answer)
            line["compiled"] = graphs[name]
            line["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            if temperature == 0 and not line["identical"]:
                line["gap"] = gap(item, answer.token_ids, true)
            fresh.append(line)
        lines += fresh
        with file.open("a") as out:
            out.write("".join(json.dumps(line) + "\n" for line in fresh))
        if count % 50 == 49:
            left = (time.monotonic() - begun) / (count + 1) * (len(waiting) - count - 1)
            print(
                f"repeat {repeat + 1}: {count + 1}/{len(waiting)}, {left / 60:.0f} min left",
                file=sys.stderr,
            )
    return lines


def read_lines(file: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of whole rounds, one for every name; what an interruption cut short is dropped."""
    found: dict[Any, list[str]] = {}
    for text in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if text.endswith("\n"):
            found.setdefault(_round(json.loads(text)), []).append(text)
    whole = [text for texts in found.values() if len(texts) == len(names) for text in texts]
    if file.exists():
        replace(file, "".join(whole))
    return [json.loads(text) for text in whole]


def _round(line: dict[str, Any]) -> tuple[int, float, int]:
    return line["repeat"], line["temperature"], line["item"]


def _reference(temperature: float) -> str:
    """Whose text ours should be: greedily `generate`'s, for a seed the plain loop's."""
    return "plain" if temperature else "generate"


def digest(items: Sequence[Item]) -> str:
    """Of questions and pictures: scenes look different where other fonts are installed."""
    whole = hashlib.sha256()
    for item in items:
        whole.update(item.question.encode() + item.image.tobytes())
    return whole.hexdigest()[:16]


def result_so_far(path: Path, fixed: dict[str, Any]) -> dict[str, Any]:
    """The result that is being added to; a new one where there is none.

    Args:
        fixed: what all its repeats have in common.
    """
    kept = json.loads(path.read_text()) if path.exists() else {**fixed, "repeats": []}
    for name, value in fixed.items():
        if kept.get(name) != value:
            sys.exit(
                f"{path} holds a result of another {name}; move it away, or give another --out"
            )
    return kept


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Rows are made anew of all repeats."""
    machines = [repeat["machine"] for repeat in result["repeats"]]
    flags = [flag for flag in machines[0]["flags"] if all(flag in m["flags"] for m in machines)]
    rows = summarise([repeat["parts"] for repeat in result["repeats"]])
    first = {key: result["repeats"][0][key] for key in ("machine", "commit")}
    common = {"threads": machines[0]["threads"], "flags": flags}
    whole = {**result, **first, "rows": [row | common for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Lists of numbers in one line each.
    listed = re.compile(r"\[\s+(-?[\d.][^\[\]{}\"]*?)\s+\]")
    text = listed.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(whole, indent=1))
    replace(path, text + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file anew, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded", help="'embedded' or a folder")
    parser.add_argument("--drafts", type=Path, default=DRAFTS, help="folder of the other drafts")
    parser.add_argument("--data", type=Path, help="folder with flickr8k/: photographs, too")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, help="which (those that there are pictures for)"
    )
    parser.add_argument("--items", type=int, default=100, help="items a task (100)")
    parser.add_argument("--choosing", type=int, default=4, help="items a task to choose trees on")
    parser.add_argument("--repeats", type=int, default=3, help="that the result should hold (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use (2)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the single answers")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    given = parser.parse_args(list(argv) if argv is not None else None)
    torch.set_num_threads(given.threads)
    given.tasks = given.tasks or (SCENES if given.data is None else TASKS)
    if "photo" in given.tasks and given.data is None:
        parser.error("photographs need --data, a folder with flickr8k/")

    asked = held_out(given.data, given.items + given.choosing)
    by_task = {task: [item for item in asked if item.task == task] for task in given.tasks}
    items = [item for found in by_task.values() for item in found[: given.items]]
    others = [item for found in by_task.values() for item in found[given.items :]]
    # A tree that runs uncompiled because too many were compiled would be measured as slow.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    drafts = {name: str(given.drafts / name) for name in ("vispec", "eagle3", "eagle-text")}
    if given.target == "embedded":
        drafts["vispec"] = locate("embedded", "draft")
    folders = {"target": locate(given.target, "target")} | drafts
    fixed = {
        "command": "python benchmarks/embedded_cpu.py --work WORK --out OUT"
        f" --target {given.target}"
        f" --items {given.items} --choosing {given.choosing} --threads {given.threads}"
        f" --tasks {' '.join(given.tasks)}" + (" --data DIR" if given.data else ""),
        "weights": {name: fingerprint(folder) for name, folder in folders.items()},
        "items": [given.items, given.choosing, len(items), digest(items)],
        "source": source(*CODE),
    }
    machine = conditions()
    # Processors may differ, and are named; what would be a user's own choice may not.
    fixed |= {"software": {name: machine[name] for name in SOFTWARE}}
    # Now: others may commit while this runs, but what was imported stays.
    running = commit()
    try:
        claim(given.work, {**fixed, "machine": machine})
    except VispecError as error:
        sys.exit(str(error))
    result = result_so_far(given.out, fixed)
    chosen = given.work / "trees.json"
    if result["repeats"]:
        stated = {key: result[key] for key in ("trees", "timed")}
        if chosen.exists() and json.loads(chosen.read_text()) != stated:
            sys.exit(f"{chosen} has other trees than {given.out}; give another --work or --out")
        chosen.write_text(json.dumps(stated) + "\n")
    target = load_target(given.target)
    methods, choice = build(target, drafts, items, others, chosen)
    result |= choice
    file = given.work / "answers.jsonl"
    if len(result["repeats"]) < given.repeats:
        warm_up(methods, items)
    else:
        print(f"nothing to measure: {given.out} holds {len(result['repeats'])} repeats")
    for repeat in range(len(result["repeats"]), given.repeats):
        lines = measure(methods, items, repeat, file, partial(logit_gap, target))
        result["dtype"] = str(target.dtype).removeprefix("torch.")
        result["repeats"].append(
            {
                "begun": min(line["at"] for line in lines),
                "ended": max(line["at"] for line in lines),
                "machine": machine,
                "commit": running,
                "compiled_while_measuring": sum(line["compiled"] for line in lines),
                "parts": parts(lines, items),
            }
        )
        write_result(given.out, result)
    result = json.loads(given.out.read_text())
    for row in result["rows"]:
        print(
            f"T={row['temperature']:.0f} {row['task']:<8} {row['method']:<18}"
            f" {row['tokens_per_s']:7.1f} tokens/s {row['speedup_vs_generate']:5.2f}x generate"
            f" {row['speedup_vs_fastest_plain']:5.2f}x fastest plain"
            f"  acceptance {row['acceptance_length']:.2f}"
        )


if __name__ == "__main__":
    main()
