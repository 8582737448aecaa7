"""Where a cycle's time goes, and what speculation gains over Hugging Face's own `generate`.

    python benchmarks/cycle.py --out benchmarks/results/cycle.json

Greedy answers to held-out scenes and the bundled photograph, one request at a time. The methods
take turns on every question, so a machine that slows down slows all of them; speeds are medians
over the repeats. Timed from the processed inputs to the last token; vision and prefill included.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vispec
from vispec.images import load_image
from vispec.training import scenes

Question = tuple[str, str, Image.Image]
MAX_NEW_TOKENS = 112


def questions(each: int) -> list[Question]:
    """`(task, question, image)`: `each` held-out scenes of every task, and one photograph."""
    photo = resources.files("vispec") / "assets" / "astronaut.jpg"
    found = [("photo", "Describe the photo in detail.", load_image(photo.read_bytes()))]
    for task in scenes.TASKS:
        seeds = (seed for seed in range(10**6) if scenes.split(seed) == "heldout")
        for _ in range(each):
            sample = scenes.scene(next(seeds), task)
            found.append((task, sample.question, sample.image))
    return found


def measure(engine: vispec.Engine, asked: list[Question], repeats: int) -> list[dict[str, Any]]:
    """One row a task and method."""

    def huggingface(question: str, image: Image.Image) -> tuple[float, int, dict[str, float]]:
        prompt = engine.target.encode(question, [image])
        begun = time.perf_counter()
        with torch.inference_mode():
            out = engine.target.model.generate(
                **prompt.inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False
            )
        return time.perf_counter() - begun, out.shape[1] - len(prompt), {}

    def ours(speculate: bool) -> Callable[[str, Image.Image], tuple[float, int, dict[str, float]]]:
        def run(question: str, image: Image.Image) -> tuple[float, int, dict[str, float]]:
            stats = engine.generate(
                question,
                [image],
                max_new_tokens=MAX_NEW_TOKENS,
                temperature=0,
                speculate=speculate,
            ).stats
            return stats.total_s, stats.new_tokens, stats.as_dict()

        return run

    methods = {"generate": huggingface, "plain": ours(False), "speculative": ours(True)}
    runs: dict[tuple[str, str], list[list[tuple[float, int, dict[str, float]]]]] = {}
    for repeat in range(repeats + 1):
        for task, question, image in asked:
            for method, run in methods.items():
                result = run(question, image)
                if repeat:  # the first round warms up
                    per_repeat = runs.setdefault((task, method), [[] for _ in range(repeats)])
                    per_repeat[repeat - 1].append(result)
    rows = []
    for (task, method), per_repeat in runs.items():
        speeds = [sum(r[1] for r in rs) / sum(r[0] for r in rs) for rs in per_repeat]
        row: dict[str, Any] = {
            "task": task,
            "method": method,
            "items": len(per_repeat[0]),
            "new_tokens": sum(r[1] for r in per_repeat[0]),
            "tokens_per_s": statistics.median(speeds),
            "tokens_per_s_spread": [min(speeds), max(speeds)],
        }
        stats = [r[2] for rs in per_repeat for r in rs if r[2]]
        passes = sum(s["target_passes"] for s in stats)
        if passes:
            row["acceptance_length"] = (
                sum(s["new_tokens"] - 1 for s in stats if s["target_passes"]) / passes
            )
            for part in ("draft_s", "verify_s", "overhead_s"):
                row[f"{part.removesuffix('_s')}_ms_per_pass"] = (
                    1e3 * sum(s[part] for s in stats) / passes
                )
        rows.append(row)
    speed = {(row["task"], row["method"]): row["tokens_per_s"] for row in rows}
    for row in rows:
        row["speedup_vs_generate"] = row["tokens_per_s"] / speed[row["task"], "generate"]
        row["speedup_vs_plain"] = row["tokens_per_s"] / speed[row["task"], "plain"]
    return rows


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = [line.split(":", 1)[1].strip() for line in flags.splitlines() if "model name" in line]
    return {
        "processor": model[0] if model else platform.processor(),
        "avx512_bf16": "avx512_bf16" in flags,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "vispec")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--items", type=int, default=8, help="scenes of each task (8)")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds (3)")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args()
    engine = vispec.load(options.target, options.draft, dtype=options.dtype)
    rows = measure(engine, questions(options.items), options.repeats)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "command": f"python benchmarks/cycle.py --items {options.items}"
        f" --repeats {options.repeats} --dtype {options.dtype}",
        "commit": commit,
        "dtype": str(engine.target.dtype).removeprefix("torch."),
        "tree": vars(engine.tree),
        "machine": machine(),
        "rows": rows,
    }
    for row in rows:
        print(
            f"{row['task']:<8} {row['method']:<12} {row['tokens_per_s']:7.1f} tokens/s"
            f"  {row['speedup_vs_generate']:5.2f}x generate  {row['speedup_vs_plain']:5.2f}x plain"
            f"  acceptance {row.get('acceptance_length', 1):.2f}"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
