"""From timed answers to rows: speeds, what they gain, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from methods import TEMPERATURES
from vispec.evaluation.items import TASKS, Item
from vispec.evaluation.quality import score

PLAIN = ("generate", "generate-static", "plain", "plain-compiled")
DRAFTS = ("vispec", "eagle-text-blind", "eagle-text", "eagle3")
"""What methods that speculate are of, by how their names begin; the first that fits."""
SAME_MODE = {"vispec-uncompiled": "plain"}
"""The plain loop that runs its passes as a method does, where that is not `plain-compiled`."""
PROMPT = ("encode", "vision", "prefill", "read")
"""An answer's time before its first cycle, and what little comes behind the last."""
CYCLE = ("draft", "verify", "overhead")
READING = ("vision", "prefill", "read")
"""Stages before the first cycle in which a model runs."""

Part = dict[str, Any]
"""One repeat of one method on one task at one temperature."""


def parts(lines: Sequence[dict[str, Any]], items: Sequence[Item]) -> list[Part]:
    """A repeat, one part a task, method and temperature.

    Args:
        lines: one an answer.
        items: what was asked.
    """
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: line["item"]):
        groups.setdefault((line["task"], line["temperature"], line["method"]), []).append(line)
    made = []
    for (task, temperature, method), here in groups.items():
        part: Part = {"task": task, "temperature": temperature, "method": method}
        part["tokens"] = [len(line["token_ids"]) for line in here]
        part["seconds"] = [round(line["seconds"], 6) for line in here]
        for name in ("passes", "identical"):
            part[name] = sum(line[name] for line in here)
        if temperature == 0:
            part["largest_gap"] = max(line.get("gap", 0.0) for line in here)
        part["quality"] = score(
            [items[line["item"]] for line in here], [line["text"] for line in here]
        )
        if here[0]["stats"]:
            for name in (*PROMPT[1:], *CYCLE):
                part[f"{name}_s"] = sum(line["stats"][f"{name}_s"] for line in here)
            part["encode_s"] = sum(line["seconds"] - line["stats"]["total_s"] for line in here)
            part |= {name: here[0]["stats"].get(name, 0) for name in ("size", "depth")}
            by_depth = [line["stats"]["accepted_by_depth"] for line in here]
            part["accepted_by_depth"] = [
                sum(counts) for counts in zip_longest(*by_depth, fillvalue=0)
            ]
        made.append(part)
    return made


def summarise(repeats: Sequence[Sequence[Part]]) -> list[dict[str, Any]]:
    """One row a task, method and temperature, of the parts of every repeat.

    Every number of speed is a median over the repeats; those that compare methods are ratios
    within a repeat. Spreads are from the least to the most of the repeats, intervals are of which
    items are asked.
    """
    found: dict[tuple[float, str], dict[str, list[Part]]] = {}
    for repeat in repeats:
        for part in repeat:
            group = found.setdefault((part["temperature"], part["task"]), {})
            group.setdefault(part["method"], []).append(part)
    rows = []
    for temperature in TEMPERATURES:
        for task in TASKS:
            by_method = found.get((temperature, task), {})
            for name in by_method:
                row = {"task": task, "temperature": temperature, "method": name}
                rows.append(row | _row(name, by_method))
    return rows


def _row(name: str, by_method: dict[str, list[Part]]) -> dict[str, Any]:
    own, greedy = by_method[name], by_method[name][0]["temperature"] == 0
    speeds = {method: _rates(parts) for method, parts in by_method.items()}
    fastest = max((m for m in PLAIN if m in speeds), key=lambda m: statistics.median(speeds[m]))
    row: dict[str, Any] = {
        "items": len(own[0]["tokens"]),
        "repeats": len(own),
        "new_tokens": sum(sum(part["tokens"]) for part in own),
        "tokens_per_s": statistics.median(speeds[name]),
        "tokens_per_s_spread": _spread(speeds[name]),
        "quality": {
            key: statistics.mean(part["quality"][key] for part in own) for key in own[0]["quality"]
        },
        "acceptance_length": statistics.median(
            (sum(part["tokens"]) - len(part["tokens"])) / max(1, part["passes"]) for part in own
        ),
        "fastest_plain": fastest,
    }
    if greedy or _is_ours(own):
        row["identical"] = sum(part["identical"] for part in own)
    if greedy:
        row["largest_gap"] = max(part["largest_gap"] for part in own)
    for label, other in (("generate", "generate"), ("fastest_plain", fastest)):
        gains = _ratios(speeds[name], speeds[other])
        row[f"speedup_vs_{label}"] = statistics.median(gains)
        row[f"speedup_vs_{label}_spread"] = _spread(gains)
        row[f"speedup_vs_{label}_interval"] = interval(own, by_method[other])
    if not _is_ours(own):
        return row
    for stage in CYCLE:
        row[f"{stage}_ms_per_pass"] = statistics.median(
            1e3 * part[f"{stage}_s"] / max(1, part["passes"]) for part in own
        )
    for stage in PROMPT:
        row[f"{stage}_ms"] = statistics.median(
            1e3 * part[f"{stage}_s"] / len(part["tokens"]) for part in own
        )
    same = _mode(name)
    if _draft(name) and same in by_method:
        plain = by_method[same]
        gains = _ratios(speeds[name], speeds[same])
        shapes = [other for other in by_method if _draft(other) == _draft(name)]
        costs = [shape for shape in shapes if _mode(shape) == same]
        bounds = [
            max(
                attainable(by_method[cost][i], plain[i], [by_method[s][i] for s in shapes])
                for cost in costs
            )
            / speeds[same][i]
            for i in range(len(own))
        ]
        cycles = _ratios(_rates(own, CYCLE), _rates(plain, CYCLE))
        row["same_mode"] = same
        row["speedup_vs_same_mode"] = statistics.median(gains)
        row["attainable_vs_same_mode"] = statistics.median(bounds)
        row["share_of_attainable"] = statistics.median(_ratios(gains, bounds))
        row["cycles_vs_same_mode"] = statistics.median(cycles)
    return row


def attainable(part: Part, plain: Part, shapes: Sequence[Part]) -> float:
    """Tokens a second with the best shape, if nothing but running the models took time.

    What a shape that is cut accepts is what the whole one accepted down to there. A level of it
    takes as long to draft as one of `part`, and a node adds to a pass over one token what one of
    `part` does.

    Args:
        part: whose costs these are.
        plain: of the plain loop that is compiled as `part` is.
        shapes: what the same draft accepted of the same answers, in every shape that was measured.
    """
    alone = plain["verify_s"] / plain["passes"]
    level = part["draft_s"] / part["passes"] / part["depth"]
    node = (part["verify_s"] / part["passes"] - alone) / (part["size"] - 1)
    # Every answer's first token comes from the prefill.
    best = (sum(part["tokens"]) - len(part["tokens"])) * alone
    for shape in shapes:
        # Answers may end on a guess, so that a last pass has no token of the target's own.
        said, accepted = shape["passes"] + sum(shape["accepted_by_depth"]), 0.0
        for depth in range(1, shape["depth"] + 1):
            accepted += sum(shape["accepted_by_depth"][depth - 1 : depth]) / shape["passes"]
            nodes = (shape["size"] - 1) * depth / shape["depth"]
            best = min(best, said / (1 + accepted) * (depth * level + alone + nodes * node))
    return sum(part["tokens"]) / (best + sum(part[f"{stage}_s"] for stage in READING))


def _mode(method: str) -> str:
    """The plain loop that runs its passes as a method does."""
    return SAME_MODE.get(method, "plain-compiled")


def _draft(method: str) -> str | None:
    """What a method's draft is."""
    return next((draft for draft in DRAFTS if method.startswith(draft)), None)


def interval(
    ours: Sequence[Part], theirs: Sequence[Part], draws: int = 2000
) -> tuple[float, float]:
    """Where 95 % of a repeat's speedups lie if other items had been drawn: a paired bootstrap.

    From the lowest of any repeat to the highest, so that what repeats differ by is in it, too.
    """
    count = len(ours[0]["tokens"])
    drawn = np.random.default_rng(0).integers(count, size=(draws, count))
    found = []
    for pair in zip(ours, theirs, strict=True):
        ours_, theirs_ = (
            np.array(part["tokens"])[drawn].sum(1) / np.array(part["seconds"])[drawn].sum(1)
            for part in pair
        )
        found.append(np.quantile(ours_ / theirs_, [0.025, 0.975]))
    return float(min(low for low, _ in found)), float(max(high for _, high in found))


def _is_ours(own: Sequence[Part]) -> bool:
    return "draft_s" in own[0]


def _rates(own: Sequence[Part], stages: Sequence[str] = ()) -> list[float]:
    """Tokens a second of every repeat; of these stages alone, where some are named."""
    return [
        sum(part["tokens"]) / (sum(part[f"{stage}_s"] for stage in stages) or sum(part["seconds"]))
        for part in own
    ]


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _spread(numbers: Sequence[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)
