"""`vispec demo`: a photograph, a question and some reading, plainly and speculatively."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich import box
from rich.table import Table
from rich.text import Text

from vispec.cli.options import EMBEDDED
from vispec.cli.terminal import Screen, quiet_libraries
from vispec.images import load_image

if TYPE_CHECKING:
    from vispec.decoding.engine import Engine, Result

DESCRIPTION = """\
Watch the embedded model describe a photograph, answer a question and read, first one token a
pass and then speculatively with its draft; both write the same text. Ends with a table of
speeds, measured in further runs that alternate between the two. Takes less than a minute and
no network."""

MODES = {"plain": False, "speculative": True}
PHOTO_QUESTION = "Describe the photo."
SCENES = {
    "question": (101, "vqa", "Is the grey cross to the right of the purple triangle?"),
    "reading": (246, "read", "Read the text."),
}
"""Seed, task and question; the seeds are held out of training."""
MAX_NEW_TOKENS = 64
REPETITIONS = 5
MEASURE_S = 25.0
DIFFERS = 1


@dataclass
class Case:
    """One picture, one question, and what came of it in each mode."""

    title: str
    image: Image.Image
    question: str
    shown: dict[str, Result] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        """Whether both modes gave the same tokens."""
        return self.shown["plain"].token_ids == self.shown["speculative"].token_ids

    def request(self, mode: str) -> dict[str, Any]:
        """What to ask the engine: greedy, so that the two texts can be compared."""
        return {
            "prompt": self.question,
            "images": [self.image],
            "max_new_tokens": MAX_NEW_TOKENS,
            "temperature": 0,
            "speculate": MODES[mode],
        }


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "demo", help="watch it work on a photograph and two scenes", description=DESCRIPTION
    )
    parser.add_argument("--image", metavar="FILE", help="a photograph of yours instead of ours")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show every case in both modes, then measure."""
    photo = load_image(options.image) if options.image else bundled_photo()
    quiet_libraries()
    from vispec.loading import load

    screen = Screen()
    screen.note("loading the embedded target and its draft ...")
    engine = load(EMBEDDED, EMBEDDED)
    cases = list(make_cases(photo))
    for mode in MODES:
        engine.generate(**cases[0].request(mode) | {"max_new_tokens": 8})
    for case in cases:
        show(screen, engine, case)
    screen.note("measuring ...")
    measure(engine, cases)
    screen.put(Text())
    screen.put(results(cases))
    same = all(case.identical for case in cases)
    return 0 if same else DIFFERS


def bundled_photo() -> Image.Image:
    """Riders before a race: what the target's own photographs are like (see assets/README.md)."""
    return load_image((resources.files("vispec") / "assets" / "motocross.jpg").read_bytes())


def make_cases(photo: Image.Image) -> Iterator[Case]:
    """The photograph, and two scenes that no model was trained on."""
    from vispec.training.scenes import scene

    yield Case("photograph", photo, PHOTO_QUESTION)
    for title, (seed, task, question) in SCENES.items():
        yield Case(title, scene(seed, task).image, question)


def show(screen: Screen, engine: Engine, case: Case) -> None:
    """Stream a case in both modes."""
    screen.put(Text())
    screen.put(Text(case.title, style="bold"))
    screen.picture(case.image)
    screen.put(Text(f"question     {case.question}"))
    for mode in MODES:
        screen.put(Text(f"{mode:<11}  "), end="")
        stream = engine.stream(**case.request(mode))
        screen.stream(stream)
        case.shown[mode] = stream.result
    screen.legend()


def measure(engine: Engine, cases: list[Case]) -> None:
    """Time every case in both modes by turns, so that a busy machine slows both alike."""
    ends = time.perf_counter() + MEASURE_S
    for _ in range(REPETITIONS):
        for case in cases:
            for mode in MODES:
                begun = time.perf_counter()
                result = engine.generate(**case.request(mode))
                taken = time.perf_counter() - begun
                case.rates.setdefault(mode, []).append(len(result.token_ids) / taken)
        if time.perf_counter() > ends:
            break


def results(cases: list[Case]) -> Table:
    """Identity, speed, and tokens a verification pass, of every case."""
    runs = len(cases[0].rates["plain"])
    table = Table(
        box=box.SIMPLE_HEAD,
        caption=f"tokens/s over the whole answer, picture and prompt included;\n"
        f"median of {runs} run{'s' if runs > 1 else ''} of each, by turns",
        caption_justify="left",
    )
    table.add_column("task", no_wrap=True)
    table.add_column("same\noutput", no_wrap=True)
    for title in (
        "\ntokens",
        "plain\ntokens/s",
        "speculative\ntokens/s",
        "\nspeedup",
        "acceptance\nlength",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for case in cases:
        plain, speculative = (median(case.rates[mode]) for mode in MODES)
        stats = case.shown["speculative"].stats
        table.add_row(
            case.title,
            "yes" if case.identical else "NO",
            str(stats.new_tokens),
            f"{plain:.1f}",
            f"{speculative:.1f}",
            f"{speculative / plain:.2f}x",
            f"{stats.acceptance_length:.2f}",
        )
    return table
