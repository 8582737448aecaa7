"""What speculation gains on the embedded pair, against every way of decoding plainly.

    python benchmarks/embedded_cpu.py --data DIR --work /tmp/embedded-cpu \\
        --out benchmarks/results/embedded-cpu.json

One request at a time: held-out scene questions, scene descriptions and readings, and photographs
where the data folder has them, greedily and sampled at temperature 1. The methods take turns on
every item, shuffled, so that a machine that slows down slows all of them. Timed from the question
and the decoded picture to the text, preprocessing and prefill included; answers end where the
target ends them. Trees are chosen on other items first. Every answer is written to the work folder
as it comes: the same command goes on after an interruption, as long as machine and code are the
same. Every finished repeat is added to the result, until it holds as many as are wanted: later ones
may be of another day and of another machine, and then the stated spread covers both.

Methods
    generate            Hugging Face, its default (dynamic) cache
    generate-static     Hugging Face, a static cache and a compiled forward
    generate-lookup     Hugging Face, prompt lookup
    plain               our loop without a draft
    plain-compiled      the same with compiled passes
    vispec-uncompiled   ViSpec trees without compiled passes
    eagle-text, eagle   compiled trees of drafts without an adapter, trained on text alone, and on
                        the same answers for as long as ViSpec
    vispec-chain        compiled, one path
    vispec              compiled trees
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import CompileConfig, StaticCache

from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.engine import Engine, Request
from vispec.decoding.planner import CHAINS, TREES, fastest_tree
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import TreeShape
from vispec.errors import VispecError
from vispec.evaluation.conditions import commit, conditions, source
from vispec.evaluation.items import TASKS, Item, held_out
from vispec.evaluation.quality import score
from vispec.loading import load_draft, load_target
from vispec.runs import claim
from vispec.targets import Target, wrap

MAX_NEW_TOKENS = 128
TEMPERATURES = (0.0, 1.0)
PLAIN = ("generate", "generate-static", "plain", "plain-compiled")
SAME_MODE = {"vispec-uncompiled": "plain"}
"""The plain loop that runs its passes as a method does, where that is not `plain-compiled`."""
MODELS = ("vision", "prefill", "draft", "verify")
"""Parts of an answer's time in which a model runs; the rest is preprocessing and bookkeeping."""
STAGES = (*MODELS, "overhead")
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
    "src/vispec/training/photos.py",
    "src/vispec/training/scenes.py",
    "src/vispec/training/scene_words.py",
    "benchmarks/embedded_cpu.py",
)
"""What the numbers depend on."""


@dataclass(frozen=True)
class Answer:
    """One timed answer.

    Attributes:
        passes: of the target behind the prefill.
        stats: our loop's own, empty for Hugging Face's.
    """

    seconds: float
    token_ids: list[int]
    text: str
    passes: int
    stats: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Item, float, int], Answer]
"""`(item, temperature, seed) -> Answer`."""


def huggingface(
    target: Target, options: Callable[[], dict[str, Any]] = dict, *, count: bool = False
) -> Method:
    """The model's own `generate`; `count` its passes, where they are fewer than its tokens."""

    def run(item: Item, temperature: float, seed: int) -> Answer:
        torch.manual_seed(seed)
        calls: list[None] = []
        hook = target.head.register_forward_hook(lambda *_: calls.append(None)) if count else None
        begun = time.perf_counter()
        prompt = target.encode(item.question, [item.image])
        # Of all tokens, as ours; by itself `generate` samples among the 50 likeliest.
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0}
        sampling = sampled if temperature else {"do_sample": False}
        with torch.inference_mode():
            out = target.model.generate(
                **prompt.inputs,
                **sampling,
                max_new_tokens=MAX_NEW_TOKENS,
                **options(),
            )
        ids = out[0, len(prompt) :].tolist()
        text = target.tokenizer.decode(ids, skip_special_tokens=True)
        seconds = time.perf_counter() - begun
        if hook is not None:
            hook.remove()
        return Answer(seconds, ids, text, (len(calls) if count else len(ids)) - 1)

    return run


def static_cache(target: Target, items: Sequence[Item]) -> Callable[[], dict[str, Any]]:
    """Options of `generate` with one static cache, made once and emptied before every answer."""
    longest = max(len(target.encode(item.question, [item.image])) for item in items)
    cache = StaticCache(config=target.model.config, max_cache_len=longest + MAX_NEW_TOKENS)
    compiled = CompileConfig(mode="default", fullgraph=False, dynamic=None)
    # `generate` compiles on accelerators alone unless told so.
    compiled._compile_all_devices = True

    def options() -> dict[str, Any]:
        cache.reset()
        return {"past_key_values": cache, "compile_config": compiled}

    return options


def request(item: Item, temperature: float, seed: int) -> Request:
    """An item as our engine takes it."""
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed)
    return Request(item.question, [item.image], sampling)


def ours(engine: Engine, speculate: bool = True) -> Method:
    """Our loop."""

    def run(item: Item, temperature: float, seed: int) -> Answer:
        begun = time.perf_counter()
        result = engine.generate([request(item, temperature, seed)], speculate=speculate)[0]
        seconds = time.perf_counter() - begun
        stats = result.stats
        return Answer(seconds, result.token_ids, result.text, stats.target_passes, stats.as_dict())

    return run


def build(
    target: Target,
    drafts: dict[str, str],
    items: Sequence[Item],
    others: Sequence[Item],
    chosen: Path,
) -> tuple[dict[str, Method], dict[str, dict[str, int]]]:
    """Every method, and the trees that were chosen for it on `others`.

    Args:
        drafts: folders of `vispec`, `eagle` and `eagle-text`.
        chosen: file of the trees, chosen once.
    """
    compiled = wrap(target.model, target.processor)
    sources = {
        "vispec-chain": (drafts["vispec"], CHAINS),
        "eagle-text": (drafts["eagle-text"], TREES),
        "eagle": (drafts["eagle"], TREES),
        "vispec": (drafts["vispec"], TREES),
    }
    methods = {
        "generate": huggingface(target),
        "generate-static": huggingface(target, static_cache(target, items)),
        "generate-lookup": huggingface(
            target, lambda: {"prompt_lookup_num_tokens": 10}, count=True
        ),
        "plain": ours(Engine(target), speculate=False),
        "plain-compiled": ours(Engine(compiled, compile=True), speculate=False),
    }
    draft, advice = load_draft(drafts["vispec"], target)
    methods["vispec-uncompiled"] = ours(Engine(target, draft, tree=advice))
    trees = json.loads(chosen.read_text()) if chosen.exists() else {}
    trees["vispec-uncompiled"] = asdict(advice or TreeShape())
    for name, (folder, candidates) in sources.items():
        draft, _ = load_draft(folder, compiled)
        if name in trees:
            tree = TreeShape(**trees[name])
        else:
            print(f"choosing the tree of {name}", file=sys.stderr)
            tree = fastest_tree(
                partial(_compiled_engine, compiled, draft),
                candidates,
                [request(item, 0.0, 0) for item in others],
                report=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
            )
        methods[name] = ours(_compiled_engine(compiled, draft, tree))
        trees[name] = asdict(tree)
        chosen.write_text(json.dumps(trees, indent=1) + "\n")
    return methods, trees


def _compiled_engine(target: Target, draft: Any, tree: TreeShape) -> Engine:
    return Engine(target, draft, tree=tree, compile=True)


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
    compiled = compilations()
    rounds = [(repeat, temperature, i) for temperature in TEMPERATURES for i in range(len(items))]
    begun, waiting = time.monotonic(), [r for r in rounds if r not in done]
    # Shuffled, so that what is left takes as long a round as what is done.
    Random(repeat).shuffle(waiting)
    for count, (_, temperature, index) in enumerate(waiting):
        item, seed = items[index], repeat * len(items) + index
        order = Random(seed).sample(list(methods), len(methods))
        answers = {name: methods[name](item, temperature, seed) for name in order}
        true = answers[_reference(temperature)].token_ids
        fresh = []
        for name, answer in answers.items():
            line = {"repeat": repeat, "temperature": temperature, "item": index, "method": name}
            line |= {"task": item.task, "identical": answer.token_ids == true} | asdict(answer)
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
    if compilations() != compiled:
        print(f"compiled {compilations() - compiled} times while measuring", file=sys.stderr)
    return lines


def read_lines(file: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of whole rounds, one for every name; what an interruption cut short is dropped."""
    found: dict[Any, list[str]] = {}
    for text in file.read_text().splitlines(keepends=True) if file.exists() else []:
        if text.endswith("\n"):
            found.setdefault(_round(json.loads(text)), []).append(text)
    whole = [text for texts in found.values() if len(texts) == len(names) for text in texts]
    if file.exists():
        file.write_text("".join(whole))
    return [json.loads(text) for text in whole]


def _round(line: dict[str, Any]) -> tuple[int, float, int]:
    return line["repeat"], line["temperature"], line["item"]


def _reference(temperature: float) -> str:
    """Whose text ours should be: greedily `generate`'s, for a seed the plain loop's."""
    return "plain" if temperature else "generate"


def logit_gap(target: Target, item: Item, ours: list[int], theirs: list[int]) -> float:
    """Between the two tokens at which two answers part, of the model's own forward."""
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    inputs = target.encode(item.question, [item.image]).inputs
    said = torch.tensor([theirs[:place]], dtype=torch.long)
    ids = torch.cat([inputs["input_ids"], said], 1)
    with torch.inference_mode():
        given = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = target.model(**given).logits[0, -1]
    return (logits[theirs[place]] - logits[ours[place]]).abs().item()


def warm_up(methods: dict[str, Method], items: Sequence[Item]) -> None:
    """Let what compiles compile now: two items of every task, one of them the longest question."""
    for task in dict.fromkeys(item.task for item in items):
        here = [item for item in items if item.task == task]
        for item in (here[0], max(here, key=lambda item: len(item.question))):
            for method in methods.values():
                for temperature in TEMPERATURES:
                    method(item, temperature, 0)


def compilations() -> int:
    """How many graphs were compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def parts(lines: list[dict[str, Any]], items: Sequence[Item]) -> list[dict[str, Any]]:
    """A repeat in sums, one part a task, method and temperature."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: line["item"]):
        groups.setdefault((line["task"], line["temperature"], line["method"]), []).append(line)
    made = []
    for (task, temperature, method), here in groups.items():
        part = {"task": task, "temperature": temperature, "method": method, "items": len(here)}
        part["new_tokens"] = sum(len(line["token_ids"]) for line in here)
        for name in ("seconds", "passes", "identical"):
            part[name] = sum(line[name] for line in here)
        if temperature == 0:
            part["largest_gap"] = max(line.get("gap", 0.0) for line in here)
        part["quality"] = score(
            [items[line["item"]] for line in here], [line["text"] for line in here]
        )
        if here[0]["stats"]:
            part |= {f"{n}_s": sum(line["stats"][f"{n}_s"] for line in here) for n in STAGES}
        made.append(part)
    return made


def summarise(repeats: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a task, method and temperature, of the parts of every repeat.

    Every number of speed is a median over the repeats; those that compare methods are ratios
    within a repeat.
    """
    found: dict[tuple[float, str], dict[str, list[dict[str, Any]]]] = {}
    for repeat in repeats:
        for part in repeat:
            group = found.setdefault((part["temperature"], part["task"]), {})
            group.setdefault(part["method"], []).append(part)
    rows = []
    for temperature in TEMPERATURES:
        for task in TASKS:
            by_method = found.get((temperature, task), {})
            speeds = {name: _rates(own, "seconds") for name, own in by_method.items()}
            plain = [name for name in PLAIN if name in speeds]
            for name, own in by_method.items():
                fastest = max(plain, key=lambda name: statistics.median(speeds[name]))
                row = _row(own) | {"fastest_plain": fastest}
                if temperature == 0 or "draft_s" in own[0]:
                    row["identical"] = sum(part["identical"] for part in own)
                if temperature == 0:
                    row["largest_gap"] = max(part["largest_gap"] for part in own)
                for label, other in (("generate", "generate"), ("fastest_plain", fastest)):
                    gains = _ratios(speeds[name], speeds[other])
                    row[f"speedup_vs_{label}"] = statistics.median(gains)
                    row[f"speedup_vs_{label}_spread"] = [min(gains), max(gains)]
                same = SAME_MODE.get(name, "plain-compiled")
                if "draft_s" in own[0] and same in by_method:
                    gains = _ratios(speeds[name], speeds[same])
                    # If nothing but running the models took time.
                    bounds = _ratios(_rates(own, *(f"{n}_s" for n in MODELS)), speeds[same])
                    row["same_mode"] = same
                    row["speedup_vs_same_mode"] = statistics.median(gains)
                    row["attainable_vs_same_mode"] = statistics.median(bounds)
                    row["share_of_attainable"] = statistics.median(_ratios(gains, bounds))
                rows.append({"task": task, "temperature": temperature, "method": name} | row)
    return rows


def _rates(own: Sequence[dict[str, Any]], *seconds: str) -> list[float]:
    """Tokens a second of every repeat."""
    return [part["new_tokens"] / sum(part[name] for name in seconds) for part in own]


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _row(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, speeds = own[0], _rates(own, "seconds")
    row: dict[str, Any] = {
        "items": first["items"],
        "repeats": len(own),
        "new_tokens": first["new_tokens"],
        "tokens_per_s": statistics.median(speeds),
        "tokens_per_s_spread": [min(speeds), max(speeds)],
        "quality": first["quality"],
        "acceptance_length": statistics.median(
            (part["new_tokens"] - part["items"]) / max(1, part["passes"]) for part in own
        ),
    }
    if "draft_s" in first:
        for name in ("draft", "verify", "overhead"):
            row[f"{name}_ms_per_pass"] = statistics.median(
                1e3 * part[f"{name}_s"] / max(1, part["passes"]) for part in own
            )
        for name in ("vision", "prefill"):
            row[f"{name}_ms"] = statistics.median(
                1e3 * part[f"{name}_s"] / part["items"] for part in own
            )
    return row


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
    first = {key: result["repeats"][0][key] for key in ("machine", "commit", "date", "trees")}
    common = {"threads": machines[0]["threads"], "flags": flags}
    whole = {**result, **first, "rows": [row | common for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded", help="'embedded' or a folder")
    parser.add_argument("--drafts", type=Path, default=DRAFTS, help="folder of the other drafts")
    parser.add_argument("--data", type=Path, help="folder with flickr8k/, for photographs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="which (all)")
    parser.add_argument("--items", type=int, default=100, help="items a task (100)")
    parser.add_argument("--choosing", type=int, default=4, help="items a task to choose trees on")
    parser.add_argument("--repeats", type=int, default=3, help="that the result should hold (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use (2)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the single answers")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    given = parser.parse_args(list(argv) if argv is not None else None)
    torch.set_num_threads(given.threads)

    asked = held_out(given.data, given.items + given.choosing)
    by_task = {task: [item for item in asked if item.task == task] for task in given.tasks}
    items = [item for found in by_task.values() for item in found[: given.items]]
    others = [item for found in by_task.values() for item in found[given.items :]]
    # A tree that runs uncompiled because too many were compiled would be measured as slow.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    drafts = {name: str(given.drafts / name) for name in ("vispec", "eagle", "eagle-text")}
    if given.target == "embedded":
        drafts["vispec"] = locate("embedded", "draft")
    folders = {"target": locate(given.target, "target")} | drafts
    fixed = {
        "command": f"python benchmarks/embedded_cpu.py --target {given.target}"
        f" --items {given.items} --choosing {given.choosing} --threads {given.threads}"
        f" --tasks {' '.join(given.tasks)}" + (" --data DIR" if given.data else ""),
        "weights": {name: fingerprint(folder) for name, folder in folders.items()},
        "items": [given.items, given.choosing, len(items), digest(items)],
        "source": source(*CODE),
    }
    machine = conditions()
    # Now: others may commit while this runs, but what was imported stays.
    running = commit()
    try:
        claim(given.work, {**fixed, "machine": machine})
    except VispecError as error:
        sys.exit(str(error))
    result = result_so_far(given.out, fixed)
    chosen = given.work / "trees.json"
    if result["repeats"] and not chosen.exists():
        chosen.write_text(json.dumps(result["repeats"][0]["trees"]) + "\n")
    target = load_target(given.target)
    methods, trees = build(target, drafts, items, others, chosen)
    file = given.work / "answers.jsonl"
    if len(result["repeats"]) < given.repeats:
        warm_up(methods, items)
    for repeat in range(len(result["repeats"]), given.repeats):
        lines = measure(methods, items, repeat, file, partial(logit_gap, target))
        result["dtype"] = str(target.dtype).removeprefix("torch.")
        result["repeats"].append(
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": machine,
                "commit": running,
                "trees": trees,
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
            f"  acceptance {row.get('acceptance_length', 1):.2f}"
        )


if __name__ == "__main__":
    main()
