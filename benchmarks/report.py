"""The tables and pictures of README and documentation, from the results that benchmarks wrote.

    python benchmarks/report.py             # rewrite them
    python benchmarks/report.py --check     # fail if a page says anything else

Tables stand between ``<!-- NAME -->`` and ``<!-- end NAME -->`` on their page. Pictures lie beside
the results; drawing them needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import drafts_report
from drafts_report import digest
from speeds import summarise
from vispec.checkpoints.files import fingerprint
from vispec.training.recipes.card import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ROOT / "src" / "vispec" / "models"
PICTURE = RESULTS / "embedded-cpu.svg"
TASKS = {
    "photo": "photograph",
    "caption": "scene, described",
    "vqa": "scene, a question",
    "read": "text, read",
}
"""Tasks as people call them, in the order of the tables."""
METHODS = {
    "generate": "generate",
    "generate-static": "generate, static cache, compiled",
    "generate-lookup": "generate, prompt lookup",
    "plain": "plain loop",
    "plain-compiled": "plain loop, compiled",
    "vispec-uncompiled": "ViSpec tree, not compiled",
    "eagle-text": "EAGLE, trained on text",
    "eagle": "EAGLE, trained as ViSpec was",
    "vispec-chain": "ViSpec chain",
    "vispec": "ViSpec tree",
}
"""Methods as the picture names them, from its top."""


OURS = {
    "vispec-chain": "a chain, compiled",
    "vispec": "a tree, compiled",
    "vispec-uncompiled": "a tree, not compiled",
}
"""The methods that the headline is about, and what they draft."""
COMPILED = ("vispec-chain", "vispec")
"""Of them, those whose cycles are taken apart."""


def headline(result: dict[str, Any]) -> str:
    """What ViSpec's trees and chains gain, by task and temperature."""
    header = (
        "task",
        "temperature",
        "`generate`",
        "fastest plain",
        "drafted",
        "ViSpec",
        "vs `generate`",
        "vs fastest plain",
        "acceptance length",
        "vs plain, same mode",
        "attainable so",
        "same text",
    )
    lines = []
    for temperature in sorted({row["temperature"] for row in result["rows"]}):
        for task, name in TASKS.items():
            rows = {
                row["method"]: row
                for row in result["rows"]
                if (row["task"], row["temperature"]) == (task, temperature)
            }
            for method, drafted in OURS.items():
                if method not in rows:
                    continue
                ours = rows[method]
                bound = attainable(rows, ours["same_mode"])
                cells = (
                    name,
                    f"{temperature:.0f}",
                    f"{rows['generate']['tokens_per_s']:.0f}",
                    f"{rows[ours['fastest_plain']]['tokens_per_s']:.0f} ({ours['fastest_plain']})",
                    drafted,
                    f"{ours['tokens_per_s']:.0f}",
                    _gain(ours, "generate"),
                    _gain(ours, "fastest_plain"),
                    f"{ours['acceptance_length']:.2f}",
                    f"{ours['speedup_vs_same_mode']:.2f}x",
                    f"{bound:.2f}x ({ours['speedup_vs_same_mode'] / bound:.0%} reached)",
                    f"{ours['identical']}/{ours['items'] * ours['repeats']}",
                )
                lines.append(cells)
    return table(header, lines)


def attainable(rows: Mapping[str, dict[str, Any]], mode: str) -> float:
    """The best that ViSpec's draft could gain over the plain loop of a mode.

    With the measured shape that suits best, if nothing but running the models took time.

    Args:
        rows: of one task and temperature, by method.
    """
    return max(
        row["attainable_vs_same_mode"]
        for method, row in rows.items()
        if method in OURS and row["same_mode"] == mode
    )


def _gain(row: dict[str, Any], over: str) -> str:
    """A speedup, and where it lies in 95 % of draws of as many items."""
    low, high = row[f"speedup_vs_{over}_interval"]
    return f"{row[f'speedup_vs_{over}']:.2f}x ({low:.2f} to {high:.2f})"


def conditions(result: dict[str, Any]) -> str:
    """What the headline was measured on, and where the time goes."""
    repeats = result["repeats"]
    machines = [repeat["machine"] for repeat in repeats]

    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(machine[key]) for machine in machines))

    days = {repeat["date"] for repeat in repeats}
    settings = {f"{k}={v}" for machine in machines for k, v in machine["settings"].items()}
    greedy = [row for row in result["rows"] if row["temperature"] == 0]
    by_kind = {
        OURS[method].removesuffix(", compiled").removeprefix("a "): found
        for method in COMPILED
        if (found := [row for row in greedy if row["method"] == method])
    }
    ours = [row for rows in by_kind.values() for row in rows]
    spread = max(
        (most - least) / row["speedup_vs_generate"]
        for row in ours
        for least, most in [row["speedup_vs_generate_spread"]]
    )

    def mean(key: str, rows: Sequence[dict[str, Any]] = ours) -> float:
        return sum(row[key] for row in rows) / len(rows)

    late = [r for r in result["rows"] if r["temperature"] == 1 and r["method"] in COMPILED]
    sampled = (
        f"At temperature 1 everything else takes {mean('overhead_ms_per_pass', late):.1f} ms of a"
        " cycle: noise for every word of the vocabulary is drawn step by step along the tree. "
        if late
        else ""
    )
    unlit = [row["acceptance_length"] for row in greedy if row["method"] == "eagle-text"]
    blind = f" and accepts {min(unlit):.2f} to {max(unlit):.2f} tokens a pass" if unlit else ""
    before = sum(mean(f"{stage}_ms") for stage in ("encode", "vision", "prefill", "read"))
    cycles = "; ".join(
        f"the {drafted}'s take {mean('draft_ms_per_pass', rows):.1f} ms of drafting, "
        f"{mean('verify_ms_per_pass', rows):.1f} ms of verification and "
        f"{mean('overhead_ms_per_pass', rows):.1f} ms of everything else, and are faster than the "
        "compiled plain loop's by: "
        + ", ".join(f"{TASKS[row['task']]} {row['cycles_vs_same_mode']:.2f}x" for row in rows)
        for drafted, rows in by_kind.items()
    )
    aims = [
        f"{goal}x over {name} ("
        + "; ".join(
            f"the {drafted} reaches it on {_tasks([r for r in rows if r[key] >= goal], rows)}"
            for drafted, rows in by_kind.items()
        )
        + ")"
        for name, key, goal in (
            ("`generate`", "speedup_vs_generate", 3.22),
            ("the fastest plain way", "speedup_vs_fastest_plain", 1.8),
        )
    ]
    return (
        "Tokens a second over whole answers, from the decoded picture to the text, one request at "
        f"a time: {ours[0]['items']} held-out items a task, {_counted(ours[0]['repeats'], 'round')}"
        f" in which the methods take turns, on {_counted(len(days), 'day')}; medians (of speedups, "
        "of each round's own), and in brackets where 95 % of draws of as many other items would "
        "lie. "
        + f"The rounds' own speedups differ by up to {spread:.0%}. " * (len(repeats) > 1)
        + agreement(repeats)
        + f"{all_of('threads')} threads of {all_of('processor')} "
        f"({all_of('cores')} cores, {', '.join(machines[0]['flags'])}), {result['dtype']}, torch "
        f"{all_of('torch')}, transformers {all_of('transformers')}"
        + (f", {', '.join(sorted(settings))}" if settings else "")
        + ". At temperature 1 methods say different texts, of different lengths.\n\n"
        f"At temperature 0 the aims were {' and '.join(aims)}. Of an "
        f"answer, {before:.0f} ms pass before its first cycle (image processor "
        f"{mean('encode_ms'):.0f}, vision {mean('vision_ms'):.0f}, prefill "
        f"{mean('prefill_ms'):.0f}, the draft's reading {mean('read_ms'):.0f}), which no draft "
        f"shortens, and which short answers consist of to a large part. Of the cycles, {cycles}. "
        "*Attainable* is the gain over the plain loop that is compiled as the row is, or not, "
        "prompts included, of the better shape, if nothing but running the models took time. "
        f"{sampled}Trees and chains were chosen on other items "
        f"({_shapes(repeats)}; nodes, depth, width). "
        f"EAGLE *trained on text* has met no image token before{blind}; EAGLE *trained as ViSpec "
        "was* had the same minutes on the same answers, and drafts trees. "
        + "".join(
            f"{words} is as fast as ViSpec's tree times: {found}. "
            for method, words in (("eagle", "That EAGLE"), ("vispec-chain", "ViSpec's chain"))
            if (found := _beside(result, method))
        )
        + "Photographs, which are harder to "
        "draft, are not timed here; what is accepted of them stands below.\n\n"
        f"![Tokens a second of every method]({PICTURE.relative_to(ROOT)})"
    )


def _shapes(repeats: Sequence[dict[str, Any]]) -> str:
    """Of all methods that draft, as they were chosen."""
    found: dict[str, list[str]] = {}
    for repeat in repeats:
        for method, tree in repeat["trees"].items():
            shape = " ".join(str(tree[key]) for key in ("size", "depth", "width"))
            if shape not in found.setdefault(METHODS[method], []):
                found[METHODS[method]].append(shape)
    return "; ".join(f"{name} {' or '.join(shapes)}" for name, shapes in found.items())


def agreement(repeats: Sequence[dict[str, Any]]) -> str:
    """How far the speedups of later days are from the first day's; empty of one day."""
    first = repeats[0]["date"]
    parts = [
        [r["parts"] for r in repeats if (r["date"] == first) == same] for same in (True, False)
    ]
    if not all(parts):
        return ""
    begun, later = (
        {(row["task"], row["temperature"], row["method"]): row for row in summarise(each)}
        for each in parts
    )
    compared = [
        (row[f"speedup_vs_{over}"], later[key][f"speedup_vs_{over}"], row[f"speedup_vs_{over}_{s}"])
        for s in ("interval", "spread")
        for key, row in begun.items()
        if row["method"] in OURS
        for over in ("generate", "fastest_plain")
    ]
    inside = [low <= after <= high for _, after, (low, high) in compared]
    half = len(inside) // 2
    furthest = max(abs(after / before - 1) for before, after, _ in compared)
    return (
        f"Of the {half} speedups of ViSpec's rows, the later day's "
        f"({_counted(len(parts[1]), 'round')}) are within {furthest:.1%} of the first day's "
        f"({len(parts[0])}): {sum(inside[:half])} lie in its intervals, "
        f"{sum(inside[half:])} between its own rounds' least and most. "
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _beside(result: dict[str, Any], method: str) -> str:
    """How fast a method is beside ViSpec's trees, greedily, by task."""
    speeds = {
        (row["method"], row["task"]): row["tokens_per_s"]
        for row in result["rows"]
        if row["temperature"] == 0
    }
    return ", ".join(
        f"{TASKS[task]} {speed / speeds['vispec', task]:.2f}"
        for (name, task), speed in speeds.items()
        if name == method
    )


def _tasks(rows: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]]) -> str:
    """Some tasks of all, in words."""
    if len(rows) in (0, len(every)):
        return "every task" if rows else "none"
    return ", ".join(f"'{TASKS[row['task']]}'" for row in rows) + " alone"


def sight(report: dict[str, Any]) -> str:
    """What the target sees, with the true and with another picture."""
    lines = []
    for m in report["quality"]:
        aims = []
        if m["least"] is not None:
            aims.append(f"{'at most' if m['lower_is_better'] else 'at least'} {m['least']:.2f}")
        if m["gain"] is not None:
            aims.append(f"{m['gain']:.2f} above another picture's")
        cells = (
            m["name"],
            str(m["items"]),
            f"{m['true']:.3f}",
            f"{m['swapped']:.3f}",
            ", ".join(aims),
            _verdict(m["reached"]),
        )
        lines.append(cells)
    return table(("measure", "items", "its picture", "another picture", "aim", ""), lines)


def acceptance(report: dict[str, Any]) -> str:
    """What the draft accepts, beside tables that see no picture."""
    header = (
        "task",
        "bits a token, sampled",
        "bigrams, the draft's tree",
        "bigrams, best tree",
        "prompt lookup",
        "ViSpec",
        "ViSpec over the better",
        "aim: 1.5",
        "over the best tree",
    )
    lines = []
    found = {row["task"]: row for row in report["acceptance"]}
    for task, name in TASKS.items():
        if task in found:
            row = found[task]
            best = max(row["bigrams_any_tree"], row["prompt_lookup"])
            cells = (
                name,
                f"{row['bits_per_token']:.2f}",
                f"{row['bigrams']:.2f}",
                f"{row['bigrams_any_tree']:.2f}",
                f"{row['prompt_lookup']:.2f}",
                f"{row['draft']:.2f}",
                f"{row['advantage']:.2f}x",
                _verdict(row["reached"]),
                f"{row['draft'] / best:.2f}x",
            )
            lines.append(cells)
    return table(header, lines)


def _verdict(reached: bool | None) -> str:
    return "" if reached is None else "reached" if reached else "**not reached**"


def measured(name: str) -> dict[str, Any] | None:
    """Results `NAME.json` and `NAME-….json` as one; each has other tasks."""
    results = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{name}*.json"))]
    if not results:
        return None
    lists = {
        key: [each for result in results for each in result.get(key, [])]
        for key in ("rows", "repeats")
    }
    return {**results[-1], **lists}


def conformance(report: dict[str, Any]) -> str:
    """What every family was asked, and what it answered."""
    questions = list(next(iter(report["families"].values())))
    words = {"yes": "yes", "no": "**no**", "none": "–", "unasked": "?"}
    lines = [
        (family, *(words[asked[q]] for q in questions))
        for family, asked in report["families"].items()
    ]
    return table(("family", *questions), lines)


def sections() -> dict[str, dict[str, str]]:
    """What belongs between the marks of every page, by mark."""
    found: dict[str, dict[str, str]] = {"README.md": {}, "docs/drafts.md": {}}
    for name, parts in (
        ("embedded-cpu", {"speed": headline, "conditions": conditions}),
        ("embedded-quality", {"sight": sight, "acceptance": acceptance}),
        ("conformance", {"conformance": conformance}),
    ):
        result = measured(name)
        if result is not None:
            late = of_another_pair(result)
            for mark, part in parts.items():
                found["README.md"][mark] = part(result) + late
    for mark, text in drafts_report.sections(RESULTS).items():
        found["docs/drafts.md"][mark] = text
    return found


def of_another_pair(result: dict[str, Any]) -> str:
    """A sentence, if a result is about weights that are shipped no more."""
    folders = {
        **dict.fromkeys(("draft", "vispec"), MODELS / "draft"),
        "target": MODELS / "target",
        **{name: ROOT / "benchmarks" / "drafts" / name for name in ("eagle", "eagle-text")},
    }
    changed = [
        name
        for name, mark in result.get("weights", {}).items()
        if name in folders and fingerprint(folders[name]) != mark
    ]
    if not changed:
        return ""
    return (
        f"\n\n*Measured with other weights than those that are shipped now ({', '.join(changed)}).*"
    )


def written(page: str, parts: dict[str, str]) -> str:
    """The page with every part between its marks.

    Raises:
        ValueError: if a part has no place on the page.
    """
    for mark, text in parts.items():
        place = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end {mark} -->)", re.DOTALL)
        if not place.search(page):
            raise ValueError(f"the page has no <!-- {mark} --> … <!-- end {mark} -->")
        page = place.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def draw(result: dict[str, Any], path: Path) -> None:
    """Tokens a second of every method, a panel a task, greedy answers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vispec"  # the same picture from the same numbers
    from matplotlib import pyplot

    greedy = [row for row in result["rows"] if row["temperature"] == 0]
    tasks = [task for task in TASKS if any(row["task"] == task for row in greedy)]
    figure, panels = pyplot.subplots(
        1,
        len(tasks),
        figsize=(3.0 + 2.3 * len(tasks), 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, task in zip(panels[0], tasks, strict=True):
        rows = {row["method"]: row for row in greedy if row["task"] == task}
        names = [method for method in METHODS if method in rows]
        speeds = [rows[name]["tokens_per_s"] for name in names]
        low, high = zip(*(rows[name]["tokens_per_s_spread"] for name in names), strict=True)
        errors = [
            [speed - least for speed, least in zip(speeds, low, strict=True)],
            [most - speed for speed, most in zip(speeds, high, strict=True)],
        ]
        colours = [
            "#2a9d5c" if name.startswith("vispec") else "#7a9cc6" if "eagle" in name else "#b8bcc2"
            for name in names
        ]
        places = range(len(names), 0, -1)
        panel.barh(places, speeds, xerr=errors, color=colours, error_kw={"elinewidth": 0.8})
        for place, name, top in zip(places, names, high, strict=True):
            gain = rows[name]["speedup_vs_generate"]
            panel.text(top * 1.02, place, f"{gain:.2f}x", va="center", fontsize=7)
        panel.set_title(TASKS[task], fontsize=9)
        panel.set_xlim(0, max(high) * 1.22)
        panel.tick_params(labelsize=7)
        panel.set_yticks(list(places), [METHODS[name] for name in names])
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("tokens a second, greedy; speedup over generate", fontsize=8)
    figure.savefig(path, metadata={"Date": None, "Description": digest(result)})


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it would")
    given = parser.parse_args(list(arguments) if arguments is not None else None)
    pages = {ROOT / name: parts for name, parts in sections().items() if parts}
    before = {page: page.read_text(encoding="utf-8") for page in pages}
    after = {page: written(before[page], parts) for page, parts in pages.items()}
    result = measured("embedded-cpu")
    if given.check:
        drawn = result is None or (PICTURE.exists() and digest(result) in PICTURE.read_text())
        drawn = drawn and drafts_report.drawn(RESULTS)
        if after != before or not drawn:
            sys.exit("pages or pictures are not of what was measured: run benchmarks/report.py")
        return
    for page, text in after.items():
        page.write_text(text, encoding="utf-8")
    if result is not None:
        draw(result, PICTURE)
    drafts_report.draw(RESULTS)


if __name__ == "__main__":
    main()
