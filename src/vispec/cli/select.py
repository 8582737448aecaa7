"""`vispec select`: one draft of several adapters, and which one serves which kind of input."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from vispec.cli import options as shared
from vispec.cli.terminal import Screen, quiet_libraries

DESCRIPTION = """\
Put drafts that differ in their adapters together into one, which takes for every image the adapter
that was measured to serve its kind best. The target answers some questions of every kind; what
each draft would have accepted of the answers decides."""

EXAMPLES = """\
adapters are trained behind one draft without any, in stages with train = "adapter":
  vispec train convolution.toml --init runs/eagle/draft --out runs/convolution
  vispec train resampler.toml --init runs/eagle/draft --out runs/resampler
  vispec select runs/convolution/draft runs/resampler/draft --target ./my-llava \\
      --kind photo=./photos --kind page=./pages.jsonl --out runs/selected
  vispec generate --target ./my-llava --draft runs/selected/draft --image cat.jpg "Describe."
"""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "select",
        help="one draft of several adapters",
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    parser.add_argument("drafts", nargs="+", metavar="DRAFT", help="a folder or a hub name")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the run")
    parser.add_argument(
        "--kind",
        action="append",
        required=True,
        type=_kind,
        metavar="NAME=QUESTIONS",
        help="a kind of input, and a folder or .jsonl file of its questions; for every kind one",
    )
    parser.add_argument(
        "--limit", type=shared.count, default=64, metavar="N", help="questions a kind (64)"
    )
    parser.add_argument(
        "-n", "--max-new-tokens", type=shared.count, default=256, help="longest answer (256)"
    )
    parser.add_argument("--target", default=shared.EMBEDDED, metavar="MODEL", help="who answers")
    parser.add_argument("--device", default="auto", help="where the target is put (auto)")
    parser.set_defaults(run=run, resumes=True)


def _kind(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place) or set(name) & set("/\\."):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=QUESTIONS")
    return name, place


def run(options: argparse.Namespace) -> int:
    """Ask, measure, put together, say which draft is best for what."""
    shared.need_training()
    quiet_libraries()
    from vispec.checkpoints.export import carry_licence, refuse_own_folder
    from vispec.checkpoints.files import licence, locate
    from vispec.decoding.engine import Engine
    from vispec.drafts.base import numbers_of
    from vispec.errors import SettingsError
    from vispec.hub import Card, from_pretrained, save_pretrained
    from vispec.loading_drafts import load_draft
    from vispec.loading_targets import load_target
    from vispec.training.questions import Source, questions
    from vispec.training.selection import select_drafts
    from vispec.writing import replacing

    kept = options.out / "draft"
    for name in options.drafts:
        if Path(name).exists():
            refuse_own_folder(name, kept)
    kinds = dict(options.kind)
    if len(kinds) < len(options.kind):
        raise SettingsError(f"kinds share a name: {', '.join(name for name, _ in options.kind)}")
    asked = {
        name: questions(Source(place, limit=options.limit), name) for name, place in kinds.items()
    }
    target = load_target(options.target, device=options.device)
    loaded = {name: load_draft(name, target) for name in options.drafts}
    drafts = {name: draft for name, (draft, _) in loaded.items()}
    first = options.drafts[0]
    helper, tree = loaded[first]
    with shared.kept(options.out):
        draft, lengths = select_drafts(
            drafts,
            Engine(target, helper, tree=tree, max_batch=16),
            asked,
            options.out,
            max_new_tokens=options.max_new_tokens,
        )
        chosen = [
            f"{kind} ({options.drafts[row.argmax()]}, of {len(asked[kind])} questions)"
            for kind, row in zip(kinds, lengths, strict=True)
        ]
        place = locate(first, "draft")
        card = Card(
            target=options.target,
            data=f"Adapters of {', '.join(drafts)}, by what greedy chains of each accept of some"
            f" answers: {', '.join(chosen)}.",
            licence=licence(place),
            tree=None if tree is None else asdict(tree),
        )
        # Drafts are loaded in the target's numbers; one that is kept has its parts' own.
        draft = draft.to(numbers_of(from_pretrained(first)).dtype)
        with replacing(kept) as fresh:
            carry_licence(place, fresh)
            save_pretrained(draft, fresh, card, name=str(kept))
    columns = [Column(name, overflow="fold") for name in drafts]
    table = Table("tokens a pass, greedy chain", *columns, box=None)
    for name, row in zip(kinds, lengths.tolist(), strict=True):
        cells = [f"{value:.2f}{' *' if value == max(row) else ''}" for value in row]
        table.add_row(name, *cells)
    Screen().put(table)
    return 0
