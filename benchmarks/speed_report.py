"""What `embedded_cpu.py` measured, as tables and a picture.

`report.py` puts them into the README and `docs/speed.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from drafts_report import digest
from methods import MAX_NEW_TOKENS
from rounds import agreement, last, processor_of, stalls
from speed_words import METHODS, OURS, OVER, TASKS, counted
from speeds import CYCLE, PROMPT
from vispec.training.recipes.card import table

HEADLINE, AS_IT_COMES = "vispec-chain", ("vispec-uncompiled", "vispec-advised")
GOALS = {"generate": 3.22, "fastest_plain": 1.8}
UNTIMED = (
    "Photographs, which are harder to draft, are not timed; what is accepted of them stands below. "
)
GOAL, OTHER_GOAL = 0.85, 0.9
"""Of the attainable speedup: the benchmark's aim, and that of drafts' training."""
BRACKETS = (
    "In brackets, where 95 % of draws of as many other items would lie in a round, from the lowest "
    "of any round to the highest."
)
Row = Mapping[str, Any]
"""Of one task, temperature and method."""


def groups(result: Mapping[str, Any]) -> dict[tuple[str, float], dict[str, Row]]:
    """Rows by method, of every task and temperature in the order of the tables."""
    found: dict[tuple[str, float], dict[str, Row]] = {}
    for temperature in sorted({row["temperature"] for row in result["rows"]}):
        for task in TASKS:
            rows = {
                row["method"]: row
                for row in result["rows"]
                if (row["task"], row["temperature"]) == (task, temperature)
            }
            if rows:
                found[task, temperature] = rows
    return found


def headline(result: Mapping[str, Any]) -> str:
    """What ViSpec gains, compiled, and how fast it is without that."""
    header = (
        "task",
        "temperature",
        "`generate`",
        "fastest plain",
        "ViSpec",
        "compiled",
        "compiled chain",
        "chain vs `generate`",
        "chain vs fastest plain",
        "acceptance length",
        "same text",
    )
    lines = []
    for (task, temperature), rows in groups(result).items():
        ours = rows[HEADLINE]
        plain = METHODS[ours["fastest_plain"]]
        cells = (
            TASKS[task],
            f"{temperature:.0f}",
            f"{rows['generate']['tokens_per_s']:.0f}",
            f"{rows[ours['fastest_plain']]['tokens_per_s']:.0f} ({plain})",
            *(f"{rows[name]['tokens_per_s']:.0f}" for name in (*AS_IT_COMES, HEADLINE)),
            _gain(ours, "generate"),
            _gain(ours, "fastest_plain"),
            f"{ours['acceptance_length']:.2f}",
            f"{ours['identical']}/{ours['items'] * ours['repeats']}",
        )
        lines.append(cells)
    return table(header, lines)


def summary(result: Mapping[str, Any]) -> str:
    """What is gained and missed, and what it was measured on."""
    plainest, compiled = AS_IT_COMES
    words = {
        plainest: "as `vispec.load` gives it",
        compiled: "with `compile=True`",
        HEADLINE: f"that, and {_shape(result, HEADLINE)} for the tree",
    }
    gains = "\n".join(
        f"- {said}: greedily {_gains(_rows_of(result, name))}{_sampled(result, name)}"
        for name, said in words.items()
    )
    greedy = _rows_of(result, HEADLINE)
    untimed = "" if any(row["task"] == "photo" for row in greedy) else UNTIMED
    return (
        "In short, from the task that gains least to the one that gains most, as many times as fast"
        f" as {' and as '.join(OVER.values())}:\n\n{gains}\n\n"
        f"The aims at temperature 0 were {' and '.join(f'{goal}x' for goal in GOALS.values())}, of "
        "which the first is the most that ViSpec's paper reports. Tokens a second over whole "
        "answers, from the decoded picture to the text, one request at a time: "
        f"{_measured(result)} {BRACKETS} *Chain* is {_shape(result, HEADLINE)}, compiled. *Same "
        f"text* is `generate`'s, and sampled our plain loop's. {untimed}"
        "[Every method, where the time goes, and what the aims would take](docs/speed.md)."
    )


def _rows_of(result: Mapping[str, Any], method: str, sampled: bool = False) -> list[Row]:
    """Of a method, one a task."""
    return [
        rows[method]
        for (_, heat), rows in groups(result).items()
        if method in rows and (heat > 0) == sampled
    ]


def _gains(rows: Sequence[Row]) -> str:
    """From the least to the most of all tasks, and where the aims are reached."""
    return " and ".join(
        f"{_range(rows, over)} ({goal}x reached on "
        f"{_tasks([row for row in rows if row[f'speedup_vs_{over}'] >= goal], rows)})"
        for over, goal in GOALS.items()
    )


def _sampled(result: Mapping[str, Any], method: str) -> str:
    """The same at temperature 1, and what is slower; a full stop where that was not measured."""
    rows = _rows_of(result, method, sampled=True)
    if not rows:
        return "."
    lost = [
        f"{words} on {_tasks(slower, rows)}"
        for over, words in OVER.items()
        if (slower := [row for row in rows if row[f"speedup_vs_{over}"] < 1])
    ]
    said = " and ".join(_range(rows, over) for over in GOALS)
    return f"; sampled {said}" + f", slower than {' and than '.join(lost)}" * bool(lost) + "."


def _range(rows: Sequence[Row], over: str) -> str:
    found = [row[f"speedup_vs_{over}"] for row in rows]
    return f"{min(found):.1f}x to {max(found):.1f}x"


def conditions(result: Mapping[str, Any]) -> str:
    """How it was measured, how rounds and days differ, with what trees."""
    repeats = result["repeats"]
    ours = [row for row in result["rows"] if row["method"] in OURS]
    spread = max(
        (most - least) / row[f"speedup_vs_{over}"]
        for row in ours
        for over in OVER
        for least, most in [row[f"speedup_vs_{over}_spread"]]
    )
    compiled = sum(repeat["compiled_while_measuring"] for repeat in repeats)
    machines = [repeat["machine"] for repeat in repeats]
    return (
        f"{_measured(result)} The methods take turns on every item. Speeds are medians of the "
        f"rounds, speedups of the rounds' own. {BRACKETS} "
        + f"The rounds' own speedups differ by up to {spread:.0%}. " * (len(repeats) > 1)
        + agreement(repeats)
        + last(repeats)
        + stalls(repeats)
        + f"{counted(compiled, 'graph')} had to be compiled while measuring. " * bool(compiled)
        + _lengths(repeats)
        + f"{_all_of(machines, 'cores')} cores. `{result['command']}`. "
        + "Trees and chains were chosen on other items, greedily: "
        + "; ".join(
            f"{label}, {_shape(result, name)}"
            for name, label in METHODS.items()
            if name in result["trees"]
        )
        + ". At temperature 1 methods say different texts, of different lengths."
    )


def _lengths(repeats: Sequence[Mapping[str, Any]]) -> str:
    """That no answer was cut or drawn out, where that is so."""
    longest = max((max(part["tokens"]) for one in repeats for part in one["parts"]), default=0)
    if not longest:
        return ""
    if longest < MAX_NEW_TOKENS:
        said = f"none reached the limit of {MAX_NEW_TOKENS} tokens, the longest has {longest}"
    else:
        said = f"some reached the limit of {MAX_NEW_TOKENS} tokens"
    return f"Answers end where the target ends them: {said}. "


def _measured(result: Mapping[str, Any]) -> str:
    """What on, in a sentence."""
    repeats, row = result["repeats"], result["rows"][0]
    machines = [repeat["machine"] for repeat in repeats]
    # Hours, too: a round behind midnight is not another day's.
    begun = [
        f"on {processor}, begun "
        + ", ".join(repeat["begun"][:16].replace("T", " ") for repeat in some)
        + " UTC"
        for processor, some in groupby(repeats, processor_of)
    ]
    return (
        f"{row['items']} held-out items a task, {counted(row['repeats'], 'round')} "
        f"({'; '.join(begun)}), {_all_of(machines, 'threads')} threads, {result['dtype']}, torch "
        f"{_all_of(machines, 'torch')}, transformers {_all_of(machines, 'transformers')}, "
        f"{_settings(machines[0])}."
    )


def _all_of(machines: Sequence[Mapping[str, Any]], key: str) -> str:
    """What machines say of themselves, each answer once."""
    return ", ".join(dict.fromkeys(str(machine[key]) for machine in machines))


def _settings(machine: Mapping[str, Any]) -> str:
    """What of its environment bears on speed, as it would be typed."""
    found = sorted(f"{name}={value}" for name, value in machine["settings"].items())
    return f"`{' '.join(found)}`" if found else "no settings of the environment"


def every_method(result: Mapping[str, Any]) -> str:
    """Tokens a second, and over `generate`, greedily and sampled."""
    by_group = groups(result)
    header = ("method", *(f"{TASKS[task]}, T={heat:.0f}" for task, heat in by_group))
    lines = [
        (
            name,
            *(
                f"{rows[method]['tokens_per_s']:.0f} ({rows[method]['speedup_vs_generate']:.2f}x)"
                if method in rows
                else ""
                for rows in by_group.values()
            ),
        )
        for method, name in METHODS.items()
        if any(method in rows for rows in by_group.values())
    ]
    ahead = "; ".join(
        f"'{TASKS[task]}' at temperature {heat:.0f}, {', '.join(others)}"
        for (task, heat), rows in by_group.items()
        if (others := _ahead(rows))
    )
    said = f"Faster than every row of ViSpec's: on {ahead}." if ahead else ""
    return f"{table(header, lines)}\n\n{said}".rstrip()


def _ahead(rows: Mapping[str, Row]) -> list[str]:
    """Other methods that are faster than all of ours, the fastest first."""
    best = max((rows[name]["tokens_per_s"] for name in OURS if name in rows), default=0.0)
    others = [name for name in METHODS if name in rows and name not in OURS]
    others.sort(key=lambda name: -rows[name]["tokens_per_s"])
    return [f"*{METHODS[name]}*" for name in others if rows[name]["tokens_per_s"] > best]


def speculation(result: Mapping[str, Any]) -> str:
    """What chains and trees gain, and what of the attainable is reached."""
    header = (
        "task",
        "temperature",
        "ViSpec",
        "vs `generate`",
        "vs fastest plain",
        "acceptance length",
        "vs plain loop, same mode",
        "attainable so",
    )
    missed = [
        f"{METHODS[name].removeprefix('ViSpec ')} of '{TASKS[task]}' at temperature {heat:.0f}"
        for (task, heat), rows in groups(result).items()
        for name in OURS
        if name in rows and rows[name]["share_of_attainable"] < GOAL
    ]
    shares = [
        row["share_of_attainable"]
        for rows in groups(result).values()
        for name, row in rows.items()
        if name in OURS
    ]
    said = f"missed by {'; '.join(missed)}" if missed else "reached by every row"
    lines = table(header, _of_ours(result, _speculation))
    return (
        f"{lines}\n\nThe aim was {GOAL:.0%} of the attainable: {said}. {OTHER_GOAL:.0%}, the aim "
        f"of drafts' training, is reached by {sum(share >= OTHER_GOAL for share in shares)} of "
        f"{len(shares)} rows.{_wanted(result)}"
    )


def _wanted(result: Mapping[str, Any]) -> str:
    """What the aims that the headline misses would take, greedily, and what is attainable."""
    said = []
    for over, goal in GOALS.items():
        missed = [
            f"{_needed(row, rows[other], goal)} of '{TASKS[task]}' ({row['acceptance_length']:.2f},"
            f" and {bound:.2f}x attainable)"
            for (task, heat), rows in groups(result).items()
            if heat == 0 and HEADLINE in rows
            for row in [rows[HEADLINE]]
            for other in [row["fastest_plain"] if over == "fastest_plain" else over]
            for bound in [_bound(row, rows[row["same_mode"]], over)]
            if row[f"speedup_vs_{over}"] < goal
        ]
        if missed:
            said.append(f"for {goal}x over {OVER[over]}, {' and '.join(missed)}")
    if not said:
        return ""
    return (
        "\n\nWhat the aims that the chain misses at temperature 0 would take, with the prompt and "
        "a cycle at what they cost here, in tokens a pass (in brackets what it has, and what the "
        f"best shape of this draft would reach): {'; '.join(said)}."
    )


def _needed(row: Row, other: Row, goal: float) -> str:
    """Tokens a pass at which a row would be so many times as fast as another."""
    tokens = row["new_tokens"] / (row["items"] * row["repeats"])
    prompt_ms, cycle_ms = _prompt_ms(row), sum(row[f"{stage}_ms_per_pass"] for stage in CYCLE)
    left_ms = 1e3 * tokens / (goal * other["tokens_per_s"]) - prompt_ms
    return f"{(tokens - 1) * cycle_ms / left_ms:.1f}" if left_ms > 0 else "no number"


def _bound(row: Row, plain: Row, over: str) -> float:
    """The attainable speedup, over something else than the plain loop of the same mode."""
    found: float = row["attainable_vs_same_mode"] * plain[f"speedup_vs_{over}"]
    return found


def _prompt_ms(row: Row) -> float:
    """What comes before the first cycle of an answer."""
    return sum(row[f"{stage}_ms"] for stage in PROMPT)


def _speculation(row: Row, rows: Mapping[str, Row]) -> tuple[str, ...]:
    return (
        _gain(row, "generate"),
        _gain(row, "fastest_plain"),
        f"{row['acceptance_length']:.2f}",
        f"{row['speedup_vs_same_mode']:.2f}x",
        f"{row['attainable_vs_same_mode']:.2f}x ({row['share_of_attainable']:.0%} reached)",
    )


def limits(result: Mapping[str, Any]) -> str:
    """What verifying, drafting and everything else cost beside a plain step, greedily."""
    chains = {
        heat: [rows[HEADLINE] for (_, at), rows in groups(result).items() if at == heat]
        for heat in (0.0, 1.0)
    }
    steps = result["trees"][HEADLINE]["depth"]
    plain = median(
        rows["plain-compiled"]["verify_ms_per_pass"]
        for (_, heat), rows in groups(result).items()
        if heat == 0
    )
    verify, draft = (
        median(row[f"{stage}_ms_per_pass"] for row in chains[0.0]) for stage in ("verify", "draft")
    )
    rest = [median(row["overhead_ms_per_pass"] for row in rows) for rows in chains.values() if rows]
    return (
        f"Compiled and greedily, a pass of the target over a chain of {steps} costs "
        f"{verify / plain:.1f} times a pass over one token, and each of its {steps} steps of "
        f"drafting {draft / steps / plain:.0%} of one. Everything else of a cycle is "
        + ", ".join(
            f"{ms:.1f} ms {how}" for ms, how in zip(rest, ("greedily", "sampled"), strict=False)
        )
        + ". (Medians of the tasks.)"
    )


def chain(result: Mapping[str, Any]) -> str:
    """How the headline's chain is asked for."""
    return (
        f"```python\nchain = vispec.TreeShape.chain({result['trees'][HEADLINE]['depth']})\n"
        'vlm = vispec.load("embedded", draft="embedded", tree=chain, compile=True)\n```'
    )


def cycles(result: Mapping[str, Any]) -> str:
    """Where the time of an answer goes, in milliseconds."""
    header = (
        "task",
        "temperature",
        "ViSpec",
        "image processor, ms",
        "vision",
        "prefill",
        "draft's reading",
        "these of an answer",
        "a cycle: draft",
        "verify",
        "everything else",
        "a plain step",
        "cycles faster by",
    )
    return table(header, _of_ours(result, _cycles))


def _cycles(row: Row, rows: Mapping[str, Row]) -> tuple[str, ...]:
    plain = rows[row["same_mode"]]
    answer_ms = 1e3 * row["new_tokens"] / (row["items"] * row["repeats"] * row["tokens_per_s"])
    return (
        *(f"{row[f'{stage}_ms']:.0f}" for stage in PROMPT),
        f"{_prompt_ms(row) / answer_ms:.0%}",
        *(f"{row[f'{stage}_ms_per_pass']:.1f}" for stage in CYCLE),
        f"{sum(plain[f'{stage}_ms_per_pass'] for stage in CYCLE):.1f}",
        f"{row['cycles_vs_same_mode']:.2f}x",
    )


def _of_ours(
    result: Mapping[str, Any], cells: Callable[[Row, Mapping[str, Row]], tuple[str, ...]]
) -> Iterable[tuple[str, ...]]:
    """Lines of a table: what `cells` makes of each of our rows and those beside it."""
    for (task, temperature), rows in groups(result).items():
        for method in OURS:
            if method in rows:
                name = METHODS[method].removeprefix("ViSpec ")
                yield TASKS[task], f"{temperature:.0f}", name, *cells(rows[method], rows)


def _gain(row: Row, over: str) -> str:
    """A speedup, and where it lies in 95 % of draws of as many items."""
    low, high = row[f"speedup_vs_{over}_interval"]
    return f"{row[f'speedup_vs_{over}']:.2f}x ({low:.2f} to {high:.2f})"


def _shape(result: Mapping[str, Any], method: str) -> str:
    """What a method drafts, as it was chosen."""
    tree = result["trees"][method]
    if tree["width"] == 1:
        return f"a chain of {tree['depth']}"
    return f"a tree of {tree['size']} nodes, depth {tree['depth']}, width {tree['width']}"


def _tasks(rows: Sequence[Row], every: Sequence[Row]) -> str:
    """Some tasks of all, in words."""
    if len(rows) in (0, len(every)):
        return "every task" if rows else "none"
    return ", ".join(f"'{TASKS[row['task']]}'" for row in rows) + " alone"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Tokens a second of every method, a panel a task, greedy answers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vispec"  # the same picture from the same numbers
    from matplotlib import pyplot

    greedy = {task: rows for (task, heat), rows in groups(result).items() if heat == 0}
    figure, panels = pyplot.subplots(
        1,
        len(greedy),
        figsize=(3.0 + 2.3 * len(greedy), 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, (task, rows) in zip(panels[0], greedy.items(), strict=True):
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
