"""The model card of a trained target, from what its training and its evaluation wrote.

    python -m vispec.training.recipes.target_card --model DIR --work DIR --quality FILE \\
        --further NAME=DIR NAME=DIR

`FILE` is what `vispec.evaluation.embedded` wrote about the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vispec.checkpoints.files import read_config, tensor_headers
from vispec.training.recipes.card import judged, table, training_of
from vispec.training.recipes.embedded_target import (
    BATCH,
    FURTHER,
    PHASES,
    PHOTOS,
    RATES,
    SEED,
)

NOTE = Path(__file__).parent / "embedded_target_note.md"
CARD = """# The embedded target

A small LLaVA-1.5 ({parameters:.1f} M parameters: a CLIP tower of {tower} layers, a Llama decoder of
{layers} layers, both of width {width}; {visual} visual tokens an image) trained from scratch by
`vispec.training.recipes.embedded_target`, so that every part of the project has a real model to
run. It is narrow and as deep as real models, because speculative decoding lives on depth.

**For research use only: trained partly on research-only photographs (Flickr8k, DAQUAR).** See
`LICENSE` beside this file.

## Data

* rendered scenes and pages (`vispec.training.scenes`), made by the project, in {fonts} fonts;
* Flickr8k photographs with captions and DAQUAR questions: research use only;
* public-domain English prose (Project Gutenberg) for the text phase.

Held out: one scene seed and one image name in twenty, by hash; everything below is measured on
those. Their fonts and words are those of training, and they served while the recipe was tuned:
there is no third set.

## Training

{training}

Seed {seed}; {batch} conversations a step; peak learning rates {rates}.{note}

Cross entropy of an answer token on held-out images, nats:

{curve}

## Measured

Greedy answers, and the same questions about another item's picture:

{quality}

## Limits

It is tiny and was trained for hours on two CPU cores and minutes on a GPU. It knows coloured
shapes, rendered words and everyday photographs, answers in English only, and is confidently wrong
about the rest. Its purpose is to exercise software; do not rely on what it says.

## Samples

{samples}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained target")
    parser.add_argument("--work", type=Path, required=True, help="work folder of its training")
    parser.add_argument(
        "--further",
        nargs="*",
        default=[],
        metavar="NAME=DIR",
        help="work folders in which it was trained on, in order, and what to call them",
    )
    parser.add_argument("--quality", type=Path, required=True, help="its evaluation, as JSON")
    parser.add_argument("--fonts", type=int, help="fonts its scenes were drawn in (as recorded)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of its training ({SEED})")
    parser.add_argument(
        "--note", type=Path, default=NOTE, help="file with what else to say of this run"
    )
    given = parser.parse_args(arguments)
    report = json.loads(given.quality.read_text())
    (given.model / "README.md").write_text(
        card(
            given.model,
            given.work,
            report,
            given.fonts or len(json.loads((given.work / "fonts.json").read_text())),
            given.seed,
            given.note.read_text().strip(),
            {name: Path(place) for name, _, place in (one.partition("=") for one in given.further)},
        )
    )


def card(
    model: Path,
    work: Path,
    report: dict[str, Any],
    fonts: int,
    seed: int,
    note: str = "",
    further: Mapping[str, Path] | None = None,
) -> str:
    """The text of the card."""
    config = read_config(str(model))
    text, tower = config["text_config"], config["vision_config"]
    sizes = [_product(shape) for _, shape, _ in tensor_headers(str(model))]
    shown = [
        f"* *{s['task']}* {s['question']}\n"
        + (f"  * true: {s['true']}\n" if "true" in s else "")
        + f"  * said: {s['said']}"
        for s in report["samples"]
    ]
    lines = [training_of(work, PHASES)]
    lines += [
        training_of(place, [FURTHER]).replace(f"* {FURTHER}:", f"* {name}:")
        for name, place in (further or {}).items()
    ]
    return CARD.format(
        parameters=sum(sizes) / 1e6,
        tower=tower["num_hidden_layers"],
        layers=text["num_hidden_layers"],
        width=text["hidden_size"],
        visual=config["image_seq_length"],
        fonts=fonts,
        training="\n".join(lines),
        seed=seed,
        batch=BATCH,
        rates=", ".join(f"{rate:.2g} ({phase})" for phase, rate in RATES.items()),
        note=f" {note}" if note else "",
        curve=curve(work, further or {}),
        quality=quality(report["quality"]),
        samples="\n".join(shown),
    )


def curve(work: Path, further: Mapping[str, Path], points: int = 12) -> str:
    """A table of held-out losses over the phases that judge answers, at most `points` rows each."""
    tasks = ("vqa", "caption", "read", "photo")
    rows = []
    phases = [(phase, work, phase) for phase in PHOTOS if phase != FURTHER]
    phases += [(name, place, FURTHER) for name, place in further.items()]
    for name, place, phase in phases:
        for line in judged(place, phase, "heldout_vqa", points):
            losses = [line.get(f"heldout_{task}") for task in tasks]
            shown = ["–" if loss is None else f"{loss:.3f}" for loss in losses]
            rows.append((name, line["step"], f"{line['elapsed_s'] / 60:.0f}", *shown))
    return table(("phase", "step", "minutes", *tasks), rows)


def quality(measures: Sequence[dict[str, Any]]) -> str:
    """A table of scores with the true and with another picture, and whether they are the goal's."""
    rows = []
    for m in measures:
        goals = []
        if m["least"] is not None:
            goals.append(f"{'at most' if m['lower_is_better'] else 'at least'} {m['least']:.2f}")
        if m["gain"] is not None:
            goals.append(f"{m['gain']:.2f} better than with another")
        goal = ", ".join(goals)
        reached = "" if not goals else ": reached" if m["reached"] else ": not reached"
        rows.append(
            (m["name"], m["items"], f"{m['true']:.3f}", f"{m['swapped']:.3f}", goal + reached)
        )
    return table(("measure", "items", "its picture", "another", "goal"), rows)


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


if __name__ == "__main__":
    main()
