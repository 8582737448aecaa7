"""What training costs: tokens a second, memory, bytes of features; and what adapters cost.

    python benchmarks/training_costs.py --work DIR --out benchmarks/results/training-costs.json

The embedded target answers questions about scenes. Then the same draft is trained on it with
features worked out anew for every step, and kept in each precision, by turns, each time in a
process of its own, so that its peak of memory is known. Adapters are timed on one image, at the
embedded target's size and at that of a model of 7 billion parameters. Nothing else may run.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vispec.adapters import build
from vispec.checkpoints.files import fingerprint, locate
from vispec.decoding.engine import Engine
from vispec.evaluation.conditions import commit, conditions
from vispec.loading_drafts import load_draft
from vispec.loading_targets import load_target
from vispec.training.distill import Question, distill, read_answers
from vispec.training.draft import Batches, Stage, matrices
from vispec.training.drafts import new_draft
from vispec.training.features import Online, Store, collect
from vispec.training.recipe import RECIPES, DraftRecipe, read_recipe
from vispec.training.recipes.embedded_questions import scene_questions
from vispec.training.trainer import Settings, optimizers_of

MODES = ("online", "float32", "bfloat16", "int8")
SIZES = {"embedded": (192, 3, 144), "7B": (4096, 32, 576)}
"""Width, heads, and visual tokens of an image."""


def adapter_kinds(width: int, heads: int) -> dict[str, Any]:
    """Adapters of the comparison, at a width."""
    attention = {"heads": heads, "inner": 2 * width}
    pooling, resampler = (
        {"kind": "pooling", "keep": 16},
        {"kind": "resampler", "queries": 16, **attention},
    )
    convolution, pruning = {"kind": "convolution", "stride": 9}, {"kind": "pruning", "keep": 16}
    query, mlp = {"kind": "query", "heads": heads}, {"kind": "mlp", "inner": width // 2}
    return {
        "query": {**query, "queries": 2},
        "query of 8": {**query, "queries": 8},
        "all tokens and a global vector": {**query, "queries": 1, "beside": True},
        "query in a core to share": {
            "kind": "unified",
            "width": width,
            "parts": [{**query, "queries": 2}],
        },
        "linear": {"kind": "linear"},
        "mlp of 2": mlp,
        "mlp of 3": {**mlp, "layers": 3},
        "pooling and mlp": [pooling, mlp],
        "transformer": {"kind": "transformer", **attention},
        "pooling": pooling,
        "pruning": pruning,
        "convolution": convolution,
        "resampler": resampler,
        "elastic": {
            "kind": "elastic",
            "parts": [pruning, pooling, convolution, resampler, {"kind": "hidden"}],
        },
    }


def taking(elastic: Any, place: int) -> Any:
    """The same adapter, with a gate that chooses one part whatever it sees."""
    made = copy.deepcopy(elastic)
    with torch.no_grad():
        made.gate.weight.zero_()
        made.gate.bias.zero_()[place] = 1
    return made


@torch.inference_mode()
def adapters(rounds: int = 9) -> list[dict[str, Any]]:
    """Parameters and milliseconds of every adapter, by turns; the median of some rounds."""
    rows: list[dict[str, Any]] = []
    for size, (width, heads, tokens) in SIZES.items():
        # What a draft of that size reads is in half precision; here all compute in float32.
        made = {name: build(s, width).eval() for name, s in adapter_kinds(width, heads).items()}
        elastic = made.pop("elastic")
        for place, part in enumerate(elastic.settings["parts"]):
            made[f"elastic, where it takes {part['kind']}"] = taking(elastic, place)
        image, question = torch.randn(1, tokens, width), torch.randn(1, width)
        spent: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(rounds + 1):
            for name, adapter in made.items():
                asked = question if adapter.asks else None
                begun = time.perf_counter()
                found = adapter(image, None, asked)
                if turn:
                    spent[name].append(1000 * (time.perf_counter() - begun))
                made_of_it = int(found.tokens.shape[1] if found.mask is None else found.mask.sum())
                made_of_it += tokens * adapter.keeps
                if not turn:
                    rows.append(
                        {
                            "size": size,
                            "adapter": name,
                            "parameters": sum(p.numel() for p in adapter.parameters()),
                            "tokens": made_of_it,
                            "global": found.globals is not None,
                        }
                    )
        for row in rows:
            if row["size"] == size:
                times = spent[row["adapter"]]
                row["ms"] = round(statistics.median(times), 3)
                row["ms_spread"] = [round(min(times), 3), round(max(times), 3)]
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="answers and features")
    parser.add_argument("--out", type=Path, help="the result")
    parser.add_argument("--seconds", type=float, default=40, help="of training a run (40)")
    parser.add_argument("--repeats", type=int, default=3, help="of all modes by turns (3)")
    parser.add_argument("--answers", type=int, default=384, help="to train on (384)")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.mode:
        print(json.dumps(trained(options.mode, options.work, options.seconds, options.answers)))
        return

    target = load_target("embedded", dtype="float32")
    questions = asked(options.answers)
    draft, tree = load_draft("embedded", target)
    engine = Engine(target, draft, tree=tree, max_batch=32)
    answers = distill(engine, questions, options.work / "answers", max_new_tokens=112)
    kept = {}
    for mode in MODES[1:]:
        begun = time.perf_counter()
        store = collect(target, questions, answers, options.work / mode, precision=mode)  # type: ignore[arg-type]
        kept[mode] = {"seconds": time.perf_counter() - begun, "bytes": store.bytes_per_token}
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for turn in range(options.repeats):
        for place in range(len(MODES)):
            mode = MODES[(place + turn) % len(MODES)]
            command = [sys.executable, __file__, "--work", str(options.work), "--mode", mode]
            command += ["--seconds", str(options.seconds), "--answers", str(options.answers)]
            ran = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            runs[mode].append(json.loads(ran.stdout.splitlines()[-1]))
            print(mode, runs[mode][-1], flush=True)
    result = {
        "command": "python benchmarks/training_costs.py",
        "commit": commit(),
        "weights": {"target": fingerprint(locate("embedded"))},
        "date": time.strftime("%Y-%m-%d"),
        "machine": conditions(),
        "answers": len(answers),
        "kept": kept,
        "runs": runs,
        "adapters": adapters(),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def asked(count: int) -> list[Question]:
    """About scenes."""
    return scene_questions(count, "train", 5_000_000, (0.0,))


def trained(mode: str, work: Path, seconds: float, answers: int) -> dict[str, float]:
    """Train for some seconds; what passed, and the most memory that was held."""
    target = load_target("embedded", dtype="float32")
    samples: Any
    if mode == "online":
        samples = Online(target, asked(answers), read_answers(work / "answers"))
    else:
        samples = Store(work / mode, target)
    loaded = held_mb()
    wanted = DraftRecipe(adapter={"kind": "query", "heads": 3, "queries": 2})
    draft: Any = new_draft(target, wanted).float().train()
    recipe = read_recipe(RECIPES / "embedded-eagle.toml").stages[-1]
    stage = Stage(
        draft, target, recipe.losses, self_fed=recipe.self_fed, relative_noise=recipe.relative_noise
    )
    settings = Settings(work, recipe.learning_rate, budget_steps=1, matrix_rate=recipe.muon)
    optimizers = optimizers_of(stage, settings, matrices(stage))
    batch = Batches(samples, recipe.batch, 0)
    begun, step, positions, tokens = 0.0, 0, 0, 0
    peak = Peak()
    while not begun or time.perf_counter() - begun < seconds:
        (chosen,) = batch.load(batch(step))
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = stage(chosen)
        stage.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if begun:
            positions += sum(len(sample.ids) for sample in chosen)
            tokens += sum(len(sample.tokens) for sample in chosen)
        elif step == 2:  # what is slow the first time is not counted
            begun = time.perf_counter()
    spent = time.perf_counter() - begun
    return {
        "steps": step - 2,
        "seconds": spent,
        "tokens_per_s": tokens / spent,
        "positions_per_s": positions / spent,
        "loaded_mb": loaded,
        "peak_mb": peak.stop(),
    }


class Peak(threading.Thread):
    """The most memory that is held at any time, looked at from beside: activations come and go."""

    def __init__(self, every_s: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.every_s, self.most, self.over = every_s, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(self.every_s):
            self.most = max(self.most, held_mb())

    def stop(self) -> float:
        self.over.set()
        self.join()
        return self.most


def held_mb() -> float:
    """Memory that is this process's own: not what it has mapped of files, which may be dropped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
