"""What speculation gains on the embedded pair, against every way of decoding plainly.

    python benchmarks/embedded_cpu.py --data DIR --work /tmp/embedded-cpu \\
        --out benchmarks/results/embedded-cpu.json

One request at a time: held-out scene questions, scene descriptions and readings, and photographs
where the data folder has them, greedily and sampled at temperature 1. The methods take turns on
every item, in an order that moves on, so that a machine that slows down slows all of them. Timed
from the question and the picture to the text, preprocessing and prefill included; answers end where
the target ends them. Trees are chosen on other items first. Every answer is written to the work
folder as it comes: the same command goes on after an interruption.

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
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import CompileConfig, StaticCache

from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.evaluation.items import TASKS, Item, held_out
from vispec.evaluation.quality import score
from vispec.loading import load_draft, load_target
from vispec.targets import Target, wrap

MAX_NEW_TOKENS = 128
TEMPERATURES = (0.0, 1.0)
PLAIN = ("generate", "generate-static", "plain", "plain-compiled")
TREES = tuple(
    TreeShape(size, depth, width)
    for size, depth, width in (
        (6, 3, 2), (8, 4, 2), (8, 5, 2), (12, 5, 3), (12, 6, 3), (16, 6, 4), (24, 7, 6),
    )
)  # fmt: skip
CHAINS = tuple(TreeShape.chain(length) for length in (2, 3, 4, 5, 6))
DRAFTS = Path(__file__).parent / "drafts"


@dataclass(frozen=True)
class Answer:
    """One timed answer; `stats` are our loop's own, empty for Hugging Face's."""

    seconds: float
    token_ids: list[int]
    text: str
    stats: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Item, float, int], Answer]
"""`(item, temperature, seed) -> Answer`."""


def huggingface(target: Target, options: Callable[[], dict[str, Any]] = dict) -> Method:
    """The model's own `generate`."""

    def run(item: Item, temperature: float, seed: int) -> Answer:
        torch.manual_seed(seed)
        begun = time.perf_counter()
        prompt = target.encode(item.question, [item.image])
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
        with torch.inference_mode():
            out = target.model.generate(
                **prompt.inputs,
                **({"do_sample": False} | sampling),
                max_new_tokens=MAX_NEW_TOKENS,
                **options(),
            )
        ids = out[0, len(prompt) :].tolist()
        text = target.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(time.perf_counter() - begun, ids, text)

    return run


def static_cache(target: Target) -> Callable[[], dict[str, Any]]:
    """Options of `generate` with one static cache, made once and emptied before every answer."""
    cache = StaticCache(config=target.model.config, max_cache_len=384)
    compiled = CompileConfig(mode="default", fullgraph=False, dynamic=None)
    # `generate` compiles on accelerators alone unless told so.
    compiled._compile_all_devices = True

    def options() -> dict[str, Any]:
        cache.reset()
        return {"past_key_values": cache, "compile_config": compiled}

    return options


def ours(engine: Engine, speculate: bool = True) -> Method:
    """Our loop."""

    def run(item: Item, temperature: float, seed: int) -> Answer:
        begun = time.perf_counter()
        result = engine.generate(
            item.question,
            [item.image],
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            seed=seed,
            speculate=speculate,
        )
        seconds = time.perf_counter() - begun
        return Answer(seconds, result.token_ids, result.text, result.stats.as_dict())

    return run


def choose(
    target: Target, draft: Any, candidates: Sequence[TreeShape], items: Sequence[Item]
) -> TreeShape:
    """The candidate with the most greedy tokens a second on these items."""
    methods = [ours(Engine(target, draft, tree=shape, compile=True)) for shape in candidates]
    seconds, tokens = [0.0] * len(methods), [0] * len(methods)
    for repeat in range(3):
        for item in items:
            for i, method in enumerate(methods):
                answer = method(item, 0.0, 0)
                if repeat:  # the first round compiles
                    seconds[i] += answer.seconds
                    tokens[i] += len(answer.token_ids)
    rates = [count / spent for count, spent in zip(tokens, seconds, strict=True)]
    for shape, found in zip(candidates, rates, strict=True):
        print(f"  {shape}: {found:.0f} tokens/s", file=sys.stderr, flush=True)
    return candidates[rates.index(max(rates))]


def build(folder: str, drafts: Path, items: Sequence[Item], known: dict[str, Any]) -> tuple[
    dict[str, Method], dict[str, dict[str, int]]
]:  # fmt: skip
    """Every method, and the trees that were chosen for it on `items` (or are `known` already)."""
    target = load_target(folder)
    compiled = wrap(target.model, target.processor)
    vispec_draft = "embedded" if folder == "embedded" else str(drafts / "vispec")
    sources = {
        "vispec-chain": (vispec_draft, CHAINS),
        "eagle-text": (str(drafts / "eagle-text"), TREES),
        "eagle": (str(drafts / "eagle"), TREES),
        "vispec": (vispec_draft, TREES),
    }
    methods = {
        "generate": huggingface(target),
        "generate-static": huggingface(target, static_cache(target)),
        "generate-lookup": huggingface(target, lambda: {"prompt_lookup_num_tokens": 10}),
        "plain": ours(Engine(target), speculate=False),
        "plain-compiled": ours(Engine(compiled, compile=True), speculate=False),
    }
    draft, advice = load_draft(vispec_draft, target)
    methods["vispec-uncompiled"] = ours(Engine(target, draft, tree=advice))
    trees = {"vispec-uncompiled": asdict(advice or TreeShape())}
    for name, (source, candidates) in sources.items():
        draft, _ = load_draft(source, compiled)
        if name in known:
            tree = TreeShape(**known[name])
        else:
            print(f"choosing the tree of {name}", file=sys.stderr)
            tree = choose(compiled, draft, candidates, items)
        methods[name] = ours(Engine(compiled, draft, tree=tree, compile=True))
        trees[name] = asdict(tree)
    return methods, trees


def measure(
    methods: dict[str, Method],
    items: Sequence[Item],
    repeats: int,
    file: Path,
) -> list[dict[str, Any]]:
    """Answer everything with every method, `repeats` times; what `file` holds is not asked again.

    Returns:
        one line an answer.
    """
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(line["repeat"], line["temperature"], line["item"]) for line in lines}
    names = list(methods)
    for item in items[:2]:  # what compiles, compiles now
        for method in methods.values():
            for temperature in TEMPERATURES:
                method(item, temperature, 0)
    rounds = [
        (repeat, temperature, index)
        for repeat in range(repeats)
        for temperature in TEMPERATURES
        for index in range(len(items))
    ]
    begun, waiting = time.monotonic(), [r for r in rounds if r not in done]
    for count, (repeat, temperature, index) in enumerate(waiting):
        fresh = []
        turn = (repeat + index) % len(names)
        for name in (*names[turn:], *names[:turn]):
            answer = methods[name](items[index], temperature, index)
            fresh.append(
                {"repeat": repeat, "temperature": temperature, "item": index, "method": name}
                | {"task": items[index].task}
                | asdict(answer)
            )
        lines += fresh
        with file.open("a") as out:
            out.write("".join(json.dumps(line) + "\n" for line in fresh))
        if count % 50 == 49:
            left = (time.monotonic() - begun) / (count + 1) * (len(waiting) - count - 1)
            print(f"{count + 1}/{len(waiting)}, {left / 60:.0f} min left", file=sys.stderr)
    return lines


def summarise(lines: list[dict[str, Any]], items: Sequence[Item]) -> list[dict[str, Any]]:
    """One row a task, method and temperature."""
    rows = []
    for temperature in TEMPERATURES:
        for task in TASKS:
            here = [
                line for line in lines if (line["task"], line["temperature"]) == (task, temperature)
            ]
            if not here:
                continue
            names = dict.fromkeys(line["method"] for line in here)
            # Greedy text is `generate`'s; a seed's is the plain loop's.
            reference = "plain" if temperature else "generate"
            true = {
                (line["repeat"], line["item"]): line["token_ids"]
                for line in here
                if line["method"] == reference
            }
            found = [
                _row(name, [line for line in here if line["method"] == name], items, true)
                for name in names
            ]
            speed = {row["method"]: row["tokens_per_s"] for row in found}
            fastest = max((name for name in PLAIN if name in speed), key=lambda name: speed[name])
            for row in found:
                row["speedup_vs_generate"] = row["tokens_per_s"] / speed["generate"]
                row["speedup_vs_fastest_plain"] = row["tokens_per_s"] / speed[fastest]
                row["fastest_plain"] = fastest
                if "attainable_tokens_per_s" in row:
                    row["attainable_vs_generate"] = (
                        row["attainable_tokens_per_s"] / speed["generate"]
                    )
                rows.append({"task": task, "temperature": temperature} | row)
    return rows


def _row(
    name: str,
    lines: list[dict[str, Any]],
    items: Sequence[Item],
    true: dict[tuple[int, int], list[int]],
) -> dict[str, Any]:
    repeats = sorted({line["repeat"] for line in lines})
    speeds = [
        sum(len(line["token_ids"]) for line in part) / sum(line["seconds"] for line in part)
        for part in ([line for line in lines if line["repeat"] == r] for r in repeats)
    ]
    first = [line for line in lines if line["repeat"] == repeats[0]]
    row: dict[str, Any] = {
        "method": name,
        "items": len(first),
        "repeats": len(repeats),
        "new_tokens": sum(len(line["token_ids"]) for line in first),
        "tokens_per_s": statistics.median(speeds),
        "tokens_per_s_spread": [min(speeds), max(speeds)],
        "identical": sum(line["token_ids"] == true[line["repeat"], line["item"]] for line in first),
        "quality": score([items[line["item"]] for line in first], [line["text"] for line in first]),
    }
    stats = [line["stats"] for line in lines if line["stats"]]
    passes = sum(s["target_passes"] for s in stats)
    if passes:
        row["acceptance_length"] = sum(s["new_tokens"] - 1 for s in stats) / passes
        for part in ("draft", "verify", "overhead"):
            row[f"{part}_ms_per_pass"] = 1e3 * sum(s[f"{part}_s"] for s in stats) / passes
        for part in ("vision", "prefill"):
            row[f"{part}_ms"] = 1e3 * sum(s[f"{part}_s"] for s in stats) / len(stats)
        # What would be left if nothing but the models took time.
        models = sum(s["vision_s"] + s["prefill_s"] + s["draft_s"] + s["verify_s"] for s in stats)
        row["attainable_tokens_per_s"] = sum(s["new_tokens"] for s in stats) / models
        row["share_of_attainable"] = row["tokens_per_s"] / row["attainable_tokens_per_s"]
    return row


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    return {
        "processor": names[0] if names else platform.processor(),
        "flags": [f for f in flags if f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "vispec")},
    }


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded", help="'embedded' or a folder")
    parser.add_argument("--drafts", type=Path, default=DRAFTS, help="folder of the other drafts")
    parser.add_argument("--data", type=Path, help="folder with flickr8k/, for photographs")
    parser.add_argument("--items", type=int, default=100, help="items a task (100)")
    parser.add_argument("--choosing", type=int, default=4, help="items a task to choose trees on")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch may use (2)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the single answers")
    parser.add_argument("--out", type=Path, required=True, help="where the result goes, as JSON")
    given = parser.parse_args(list(argv) if argv is not None else None)
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)

    asked = held_out(given.data, given.items + given.choosing)
    by_task = {task: [item for item in asked if item.task == task] for task in TASKS}
    items = [item for found in by_task.values() for item in found[: given.items]]
    others = [item for found in by_task.values() for item in found[given.items :]]

    chosen = given.work / "trees.json"
    known = json.loads(chosen.read_text()) if chosen.exists() else {}
    methods, trees = build(given.target, given.drafts, others, known)
    chosen.write_text(json.dumps(trees))
    lines = measure(methods, items, given.repeats, given.work / "answers.jsonl")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "command": f"python benchmarks/embedded_cpu.py --items {given.items}"
        f" --repeats {given.repeats} --threads {given.threads}",
        "commit": commit,
        "dtype": "float32",
        "machine": machine(),
        "trees": trees,
        "rows": summarise(lines, items),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        print(
            f"T={row['temperature']:.0f} {row['task']:<8} {row['method']:<18}"
            f" {row['tokens_per_s']:7.1f} tokens/s {row['speedup_vs_generate']:5.2f}x generate"
            f" {row['speedup_vs_fastest_plain']:5.2f}x fastest plain"
            f"  acceptance {row.get('acceptance_length', 1):.2f}"
        )


if __name__ == "__main__":
    main()
