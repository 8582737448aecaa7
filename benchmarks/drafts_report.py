"""What `drafts_compared.py` and the benchmarks beside it measured, as tables and pictures.

`report.py` puts them into `docs/drafts.md`; `ways.py` says what their intervals are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vispec.training.recipes.card import table
from ways import Measure, Result, acceptance, accepted, seconds, unseeded

FULL = "query"
"""The arm that others are compared with: ViSpec."""
BESIDE = "all tokens and a global vector"
"""The arm that is as the embedded draft is."""
EMBEDDED = "the embedded draft"
BLIND = "text alone, no image tokens"
"""The draft that knows of an image what the target's features of later tokens say."""
ALONE = "resampler alone, on pooling's draft"
"""The arm of which only an adapter learns, behind another's draft."""
TASKS = {"photo": "photograph", "caption": "scene", "vqa": "question", "read": "text in image"}
WORDS = {
    "query": "query (ViSpec)",
    "none": "none (EAGLE)",
    "hidden": "hidden (HiViS)",
    "elastic": "elastic (SpecVLM)",
    EMBEDDED: "the embedded draft, which learnt for longer",
    BLIND: "text alone, no image tokens (text-only)",
    ALONE: "resampler alone, after pooling's minutes",
    "small model, other words": "small model, other words (universal)",
}
"""Arms as people call them."""


MANY = 100
"""Times, beyond which a ratio says no more than that the other draft accepts next to nothing."""


def change(found: tuple[float, float, float]) -> str:
    """A ratio as a change in percent, and its interval; bold where it does not hold zero."""
    value, low, high = (100 * (one - 1) for one in found)
    text = f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def times(found: tuple[float, float, float]) -> str:
    """A speedup and its interval."""
    if found[0] > MANY or not math.isfinite(found[2]):
        least = found[1] if math.isfinite(found[1]) else MANY
        return f"over {min(MANY, int(least))}x"
    return "{:.2f}x ({:.2f} to {:.2f})".format(*found)


def speedup(result: Result, name: str) -> tuple[float, float, float]:
    """Over plain decoding, whole answers."""
    value, low, high = result.ratio(seconds, name, "plain")
    return 1 / value, 1 / high, 1 / low


def per_pass(result: Result, name: str, time: str) -> float:
    """Milliseconds of every verification pass."""
    way = result.ways[name]
    return 1000 * float(way[time].sum() / way["target_passes"].sum())


def rows(result: Result, names: Sequence[str], header: str, other: str = FULL) -> str:
    """A table of ways: what is accepted by task, against another, and how fast it is."""
    tasks = [task for task in TASKS if task in set(result.tasks)]
    titles = (
        header,
        "adapter / all, M (MB)",
        "seeds",
        "steps",
        *(TASKS[task] for task in tasks),
        "all",
        f"against {other}",
        "draft's prefill, ms",
        "draft, ms a pass",
        "speedup",
        "same text",
    )
    cells = []
    for name in names:
        if name not in result.ways:
            continue
        facts = result.stated["ways"][result.label(name)]
        own, whole = (facts[key] / 1e6 for key in ("adapter_parameters", "parameters"))
        same = result.ways[name]["same_text"]
        row = (
            WORDS.get(name, name),
            f"{own:.2f} / {whole:.2f} ({facts['bytes'] / 1e6:.1f})",
            str(result.seeds(name)),
            result.steps(name),
            *(f"{result.value(acceptance, name, task):.2f}" for task in tasks),
            f"{result.value(acceptance, name):.2f}",
            "" if name == other else change(result.ratio(acceptance, name, other)),
            f"{1000 * float(result.ways[name]['read_s'].mean()):.1f}",
            f"{per_pass(result, name, 'draft_s'):.2f}",
            times(speedup(result, name)),
            f"{int(same.sum())}/{same.size}",
        )
        cells.append(row)
    return table(titles, cells)


def group(result: Result, name: str) -> list[str]:
    """Arms of a group, the one that accepts most first."""
    arms = [arm for arm, facts in result.stated["arms"].items() if facts["group"] == name]
    measured = [arm for arm in arms if arm in result.ways]
    return sorted(measured, key=lambda arm: -result.value(acceptance, arm))


def adapters(result: Result) -> str:
    return rows(result, group(result, "adapters"), "adapter")


def by_task(result: Result) -> str:
    """What adapters accept of each task, against ViSpec's."""
    return _against_by_task(result, acceptance, "tokens a pass", group(result, "adapters"))


def seconds_by_task(result: Result) -> str:
    """How long answers of each task take with several seeds or no tree, against ViSpec."""
    names = [name for name in group(result, "adapters") if result.seeds(name) > 1]
    return _against_by_task(result, seconds, "seconds an answer", [*names, "query, chain"])


def _against_by_task(result: Result, measure: Measure, header: str, names: Sequence[str]) -> str:
    tasks = [task for task in TASKS if task in set(result.tasks)]
    cells = [
        (
            WORDS.get(name, name),
            *(change(result.ratio(measure, name, FULL, task)) for task in (*tasks, None)),
        )
        for name in names
        if name in result.ways and name != FULL
    ]
    return table((f"{header}, against {FULL}", *(TASKS[task] for task in tasks), "all"), cells)


def changed(result: Result) -> list[str]:
    """The ablation: ways that differ from the full system in one thing."""
    arms = [name for name in group(result, "training") if name != ALONE]
    return ["query, chain", *arms, "none", "hidden", "text alone", BLIND]


def training(result: Result) -> str:
    return rows(result, [FULL, *changed(result)], "full system, or changed")


def kinds(result: Result) -> str:
    others = ["query and lookup", "lookup", "the embedded draft"]
    names = [FULL, "none", *group(result, "kinds"), *others]
    return rows(result, names, "draft")


def own_trees(result: Result) -> str:
    """Kinds of drafts, each with the tree that suits it."""
    names = [name for name in result.ways if name.endswith(", own tree")]
    names.sort(key=lambda name: result.value(seconds, name))
    before = dict(zip(names[1:], names, strict=False))
    trees = {name: result.stated["ways"][name]["tree"] for name in names}
    cells = [
        (
            name.removesuffix(", own tree"),
            ", ".join(str(tree[key]) for key in ("size", "depth", "width")),
            f"{result.value(acceptance, name):.2f}",
            times(speedup(result, name)),
            change(result.ratio(seconds, name, before[name])) if name in before else "",
        )
        for name, tree in trees.items()
    ]
    header = ("draft", "tree: nodes, depth, width", "acceptance length", "speedup")
    return table((*header, "seconds against the one above"), cells)


def forms(result: Result) -> str:
    """Deployment forms, made of the first seed, and so beside that one."""
    names = [name for name in result.ways if re.match(r"query, (int8|rank \d+)$", name)]
    return rows(result.first(FULL), [FULL, *names], "form")


def chosen(result: Result) -> str:
    """Adapters chosen for every image: by what was measured, and by a gate that learnt to."""
    parts = ["pooling", ALONE, "selector"]
    text = rows(result.first("pooling"), parts, "adapter", "pooling")
    for name, tasks in result.stated.get("choices", {}).items():
        said = []
        for task, counts in tasks.items():
            whole = sum(counts.values())
            often = {part: count / whole for part, count in counts.items() if count}
            if often:
                shares = ", ".join(f"{part} {share:.0%}" for part, share in often.items())
                said.append(f"{TASKS.get(task, task)}: {shares}")
        text += f"\n\nWhat the trained gate of {WORDS.get(name, name)} takes: {'; '.join(said)}."
    return text


def mappings(result: Result) -> str:
    """Adapters that map image tokens one to one, each against each: who accepts more."""
    names = [n for n in ("linear", "mlp of 2", "mlp of 3", "transformer") if n in result.ways]
    cells = []
    for name in names[:-1]:
        later = names[names.index(name) + 1 :]
        told = [change(result.ratio(acceptance, other, name)) for other in later]
        cells.append((name, *[""] * (len(names) - 1 - len(told)), *told))
    return table(("against", *names[1:]), cells)


def rates(result: Result) -> str:
    """Held-out acceptance of arms trained at other rates; single runs."""
    found: dict[str, dict[str, float]] = {}
    for label in result.stated["logs"]:
        if known := re.fullmatch(r"(.*), (half|twice) the rate, seed 0", label):
            one = found.setdefault(known[1], {"as all": _judged(result, f"{known[1]}, seed 0")})
            one[known[2]] = _judged(result, label)
    columns = ("half", "as all", "twice")
    cells = [
        (WORDS.get(name, name), *(f"{one[c]:.2f}" if c in one else "" for c in columns))
        for name, one in found.items()
    ]
    header = ("tokens a pass of held-out chains", "half the rate", "as all have it", "twice")
    return table(header, cells)


def _judged(result: Result, label: str) -> float:
    """What chains of an arm's trained draft accept of the questions it was judged by."""
    *_, last = result.stated["logs"][label].values()
    return float(last[-1]["heldout_acceptance_length"])


def aims(result: Result) -> str:
    """Draft tokens a pass against other EAGLEs, and the models' own share of the loop's time."""
    raw = "text alone"
    tasks = [task for task in TASKS if task in set(result.tasks)]
    others = [name for name in (raw, BLIND, "none") if name in result.ways]
    header = (
        "tokens accepted a pass, without the target's own",
        *(TASKS[task] for task in tasks),
        "all",
        *(f"against {WORDS.get(name, name)}" for name in others),
    )
    cells = []
    for name in (FULL, BESIDE, "none", "hidden", BLIND, raw):
        if name not in result.ways:
            continue
        row = (
            WORDS.get(name, name),
            *(f"{result.value(accepted, name, task):.2f}" for task in tasks),
            f"{result.value(accepted, name):.2f}",
            *("" if name == one else times(result.ratio(accepted, name, one)) for one in others),
        )
        cells.append(row)
    text = table(header, cells)
    if BLIND in result.ways:
        told = ", ".join(
            f"{times(result.ratio(accepted, FULL, BLIND, task))} ({TASKS[task]})" for task in tasks
        )
        text += f"\n\nBy task, ViSpec's against the draft that no image token reaches: {told}."
    shares = {TASKS[task]: _models_share(result, result.places(task)) for task in tasks}
    said = ", ".join(f"{share:.1%} ({task})" for task, share in shares.items())
    return (
        f"{text}\n\nBehind the prompt, the time of ViSpec's answers is the two models' own to"
        f" {said}. So the speed that acceptance lengths allow is reached to that share, with"
        " drafting and verifying at what they cost inside the loop; the aim was 90 %. That leaves"
        " out the prompt. The [built-in draft](speed.md#what-speculation-gains) is held to a"
        " stricter measure, by whole answers and the best shape, of which most rows have less."
    )


def _models_share(result: Result, places: np.ndarray) -> float:
    """Of the time of ViSpec's cycles, drafting and verifying."""
    way = result.ways[FULL]
    spent = {part: way[f"{part}_s"][:, places].sum() for part in ("draft", "verify", "overhead")}
    return float((spent["draft"] + spent["verify"]) / sum(spent.values()))


def conditions(result: Result) -> str:
    stated, machine = result.stated, result.stated["machine"]
    counts = ", ".join(
        f"{int((result.tasks == task).sum())} {name}" for task, name in TASKS.items()
    )
    tree = next(iter(stated["ways"].values()))["tree"]
    deviation, freedom = result.spread(acceptance)
    trained = ", ".join(sorted({f"`{one[:10]}`" for one in stated["trained_at"].values()}))
    first = [
        stages["text"][-1]["step"]
        for label, stages in stated["logs"].items()
        if stated["arms"][unseeded(label)]["group"] == "adapters"
    ]
    return (
        f"{stated['minutes']:.0f} minutes of one core for every arm, on the same"
        " answers and features, at rates and with losses that trials on ViSpec's adapter chose"
        " (kinds that guess tokens have a loss of their own; small models begin with layers of the"
        f" target; *{ALONE}* begins with what those minutes made; *none, as many steps* took the"
        " steps of *query*, however long; the embedded draft learnt for longer);"
        f" then {len(stated['questions'])} held-out questions"
        f" ({counts}) that all answer by turns, greedily, on {machine['threads']} threads of"
        f" {machine['processor']}; a tree of {tree['size']} nodes, depth {tree['depth']}, width"
        f" {tree['width']} for all, so at most {tree['depth'] + 1} tokens a pass."
        f" torch {machine['torch']}, transformers {machine['transformers']}, {stated['date']},"
        f" `{stated['command']}` at"
        f" `{stated['commit'][:10]}`, of drafts that were trained at {trained}. Minutes are not the"
        " same work to the percent: in the text stage, which is alike for all adapters, arms took"
        f" {min(first)} to {max(first)} steps, and intervals know of that only as far as seeds of"
        " an arm differ by it. In brackets, 95 % intervals over questions and seeds: seeds of"
        f" an arm differ by {deviation:.1%} (one standard deviation, from {freedom} degrees of"
        " freedom), and that is taken for all arms, most of which have one seed. Speedups are over"
        " the plain loop, prompts included."
    )


def draw_ratios(result: Result, names: Sequence[str], path: Path, title: str) -> None:
    """What ways accept against the full system, with intervals."""
    from matplotlib.figure import Figure

    names = [name for name in names if name in result.ways and name != FULL]
    found = [result.ratio(acceptance, name, FULL) for name in names]
    order = sorted(range(len(names)), key=lambda i: found[i][0])
    figure = Figure(figsize=(7.5, 0.9 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, i in enumerate(order):
        value, low, high = (100 * (one - 1) for one in found[i])
        colour = "#2a9d5c" if low > 0 else "#c0553c" if high < 0 else "#7a8290"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color="#333", linewidth=0.8)
    labels = [WORDS.get(names[i], names[i]) for i in order]
    axes.set_yticks(range(len(order)), labels, fontsize=8)
    axes.set_xlabel(f"acceptance length against {WORDS[FULL]}, %, and 95 % interval", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path, result)


def draw_curves(result: Result, path: Path) -> None:
    """Held-out acceptance while arms were trained."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, name in zip(panels, ("adapters", "training", "kinds"), strict=True):
        for number, arm in enumerate([FULL, *(a for a in group(result, name) if a != FULL)]):
            logs = result.stated["logs"].get(f"{arm}, seed 0", {})
            begun, points = 0.0, []
            for lines in logs.values():
                points += [
                    (begun + line["elapsed_s"] / 60, line["heldout_acceptance_length"])
                    for line in lines
                    if "heldout_acceptance_length" in line
                ]
                begun += lines[-1]["elapsed_s"] / 60
            if points:
                style = {"color": "black", "zorder": 9} if arm == FULL else {}
                line = "-" if number <= 10 else "--"
                panel.plot(*zip(*points, strict=True), line, label=WORDS.get(arm, arm), **style)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("minutes", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=5.5)
    panels[0].set_ylabel("held-out, greedy chain", fontsize=8)
    save(figure, path, result)


def shared(stated: Mapping[str, Any], like: Result) -> str:
    """One adapter for two targets, beside one for each.

    Args:
        like: tells how much seeds differ.
    """
    header = (
        "target",
        "adapter",
        "its parameters, M",
        "of them shared",
        "acceptance length",
        "shared against it",
        "speedup",
        "same text",
    )
    cells = []
    for target, facts in stated["targets"].items():
        result = Result({**stated, "measured": facts["measured"]}, like)
        for kind, sizes in facts["sizes"].items():
            own = sizes["adapter_parameters"]
            common = facts["core"] if kind == "shared" else 0
            same = result.ways[kind]["same_text"]
            against = "" if kind == "shared" else change(result.ratio(acceptance, "shared", kind))
            row = (
                target,
                kind,
                f"{own / 1e6:.2f}",
                f"{common / 1e6:.2f}",
                f"{result.value(acceptance, kind):.2f}",
                against,
                times(speedup(result, kind)),
                f"{int(same.sum())}/{same.size}",
            )
            cells.append(row)
    return table(header, cells)


def adapted(stated: Mapping[str, Any]) -> str:
    """Held-out acceptance of drafts for a target that was trained on, minute by minute."""
    judged = {
        name: [line for line in lines if "heldout_acceptance_length" in line]
        for name, lines in stated["logs"].items()
    }
    before = stated["before"]["acceptance_length"]
    rows = [("0", f"{before:.2f}", *([""] * (len(judged) - 1)))]
    # A run that was interrupted was judged at other times than one that was not.
    most = max(map(len, judged.values()))
    parts = [{round(line["share"] * most): line for line in lines} for lines in judged.values()]
    for part in sorted({part for lines in parts for part in lines}):
        told = [lines.get(part) for lines in parts]
        minutes = np.mean([line["elapsed_s"] for line in told if line]) / 60
        lengths = [f"{line['heldout_acceptance_length']:.2f}" if line else "" for line in told]
        rows.append((f"{minutes:.0f}", *lengths))
    return table(("minutes of one core", *judged), rows)


def adapter_costs(stated: Mapping[str, Any]) -> str:
    """What an adapter makes of one image, and how long it takes."""
    rows = stated["adapters"]
    small, large = ([r for r in rows if r["size"] == size] for size in ("embedded", "7B"))
    header = (
        "adapter",
        "vectors of an image of 144",
        "parameters, M",
        "ms",
        "vectors of 576",
        "parameters at 7B, M",
        "ms",
    )
    cells = []
    for one, other in zip(small, large, strict=True):
        words = [f"{r['tokens']}{' and a global one' if r['global'] else ''}" for r in (one, other)]
        row = (
            one["adapter"],
            words[0],
            f"{one['parameters'] / 1e6:.2f}",
            f"{one['ms']:.2f}",
            words[1],
            f"{other['parameters'] / 1e6:.1f}",
            f"{other['ms']:.0f}",
        )
        cells.append(row)
    return table(header, cells)


def training_costs(stated: Mapping[str, Any]) -> str:
    """Throughput and memory of training, by how features are had."""
    header = (
        "features",
        "answer tokens a second",
        "positions a second",
        "peak memory of its own, MB",
        "bytes a position",
        "seconds to keep them",
    )
    cells = []
    for mode, runs in stated["runs"].items():
        tokens, positions, peak = (
            [run[name] for run in runs] for name in ("tokens_per_s", "positions_per_s", "peak_mb")
        )
        kept = stated["kept"].get(mode)
        row = (
            mode,
            f"{np.median(tokens):.0f} ({min(tokens):.0f} to {max(tokens):.0f})",
            f"{np.median(positions):.0f}",
            f"{np.median(peak):.0f}",
            f"{kept['bytes']:.0f}" if kept else "none",
            f"{kept['seconds']:.0f}" if kept else "",
        )
        cells.append(row)
    return f"{table(header, cells)}\n\nOf {stated['answers']} answers."


def sections(
    folder: Path, late: Callable[[Mapping[str, Any]], str] = lambda stated: ""
) -> dict[str, str]:
    """What belongs between the marks of the page, of what was measured.

    Args:
        late: what is to be said behind a result that is no more of what is shipped.
    """
    found: dict[str, str] = {}
    if (result := drafts(folder)) is not None:
        parts = (conditions, adapters, by_task, seconds_by_task, mappings, training, kinds)
        for part in (*parts, own_trees, forms, chosen, rates, aims):
            name = f"drafts-{part.__name__.replace('_', '-')}"
            found[name] = part(result) + late(result.stated)
        if (path := folder / "shared.json").exists():
            stated = json.loads(path.read_text())
            found["drafts-shared"] = shared(stated, result) + late(stated)
    if (path := folder / "adapted.json").exists():
        stated = json.loads(path.read_text())
        found["drafts-adapted"] = adapted(stated) + late(stated)
    if (path := folder / "training-costs.json").exists():
        stated = json.loads(path.read_text())
        found["training-costs"] = training_costs(stated) + late(stated)
        found["adapter-costs"] = adapter_costs(stated)
    return found


@cache
def drafts(folder: Path) -> Result | None:
    """What `drafts_compared.py` wrote, if it did."""
    path = folder / "drafts.json"
    return Result(json.loads(path.read_text())) if path.exists() else None


PICTURES = ("adapters", "ablation", "kinds", "curves")


def draw(folder: Path) -> None:
    """The pictures, beside the results."""
    if (result := drafts(folder)) is None:
        return
    for name, names, title in (
        ("adapters", group(result, "adapters"), "adapters"),
        ("ablation", changed(result), "the full system, changed"),
        ("kinds", [*group(result, "kinds"), "query and lookup", "lookup"], "kinds of drafts"),
    ):
        draw_ratios(result, names, folder / f"drafts-{name}.svg", title)
    draw_curves(result, folder / "drafts-curves.svg")


def drawn(folder: Path) -> bool:
    """Whether the pictures show what was measured."""
    if (result := drafts(folder)) is None:
        return True
    mark = digest(result.stated)
    pictures = [folder / f"drafts-{name}.svg" for name in PICTURES]
    return all(one.exists() and mark in one.read_text() for one in pictures)


def digest(result: Mapping[str, Any]) -> str:
    """What a picture is marked with, to tell which numbers it shows."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def save(figure: Any, path: Path, result: Result) -> None:
    """The same picture from the same numbers."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "vispec"}):
        figure.savefig(path, metadata={"Date": None, "Description": digest(result.stated)})
