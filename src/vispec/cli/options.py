"""Options that several verbs share, and what they mean to the library."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vispec.cli.terminal import quiet_libraries, warn
from vispec.errors import VispecError

if TYPE_CHECKING:
    from vispec.decoding.engine import Engine

EMBEDDED = "embedded"
UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST),
}
"""What disks and folders say when they take nothing."""
SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
)


def add_models(parser: argparse.ArgumentParser) -> None:
    """`--target`, `--draft`, `--dtype` and `--device`."""
    group = parser.add_argument_group("models")
    group.add_argument(
        "--target",
        default=EMBEDDED,
        metavar="MODEL",
        help="the model that answers: 'embedded' (the default), a folder, or a hub name, which "
        "may end in @revision",
    )
    group.add_argument(
        "--draft",
        metavar="DRAFT",
        help="the draft that proposes: 'embedded' (the default with the embedded target), 'none', "
        "a folder or a hub name, of a draft or of a smaller model; 'lookup' proposes what followed "
        "the same words before, and 'DRAFT+lookup' does where the text repeats itself",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float64", "float32", "bfloat16", "float16"),
        help="number format to compute in; 'auto' is what the target was saved in",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="where to compute, such as cpu or cuda; 'auto' takes cuda where it is",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """What a checkpoint is trusted with."""
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickled weights (pytorch_model.bin) where there are no safetensors; opening "
        "them can run code, so only for checkpoints that you trust",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen; whatever is not given follows the checkpoint's configuration."""
    group = parser.add_argument_group(
        "choosing tokens", "What is not given follows the target's own generation configuration."
    )
    group.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest answer (default: 256)",
    )
    group.add_argument(
        "--temperature", type=float, metavar="T", help="0 takes the likeliest token every time"
    )
    group.add_argument(
        "--top-p", type=float, metavar="P", help="sample among the tokens that hold this share"
    )
    group.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="drop tokens below P times the likeliest"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1 discourages repetition"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="same seed, same text, with or without a draft"
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be given several times",
    )


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that `add_sampling` stands for."""
    return {name: getattr(options, name) for name in SAMPLING}


def count(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def amount(text: str) -> float:
    """A number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def need_training() -> None:
    """Raise `VispecError` where what training needs is not installed."""
    missing = [name for name in ("accelerate", "pydantic", "pyarrow") if find_spec(name) is None]
    if missing:
        raise VispecError(f"training needs {', '.join(missing)}: pip install 'vispec[train]'")


@contextmanager
def written(folder: Path | str, more: str = "") -> Iterator[None]:
    """Say of a full disk, or another that cannot be written to, which folder it is about."""
    try:
        yield
    except OSError as error:
        # An error of the network's says what it is itself.
        about = f"'{folder}' cannot be written to: " if error.errno in UNWRITABLE else ""
        raise VispecError(f"{about}{error}{more}") from error


def kept(folder: Path) -> AbstractContextManager[None]:
    """The same, of work that goes on: nothing is lost."""
    return written(folder, ". What was finished is kept; the same command goes on from there")


def rewritten(options: argparse.Namespace) -> tuple[str, Mapping[str, Any], Any]:
    """Where `options.draft` is, what else its files say, and itself, to be written elsewhere."""
    from vispec.checkpoints.export import refuse_own_folder
    from vispec.checkpoints.files import locate
    from vispec.checkpoints.registry import plan_of, read

    place, pickled = locate(options.draft, "draft"), options.allow_pickle
    refuse_own_folder(place, options.folder)
    facts = plan_of(place, options.draft, pickled=pickled).facts
    return place, facts, read(place, label=options.draft, pickled=pickled)


def draft_name(options: argparse.Namespace) -> str | None:
    """The draft to load, None for plain decoding.

    The embedded draft fits the embedded target only, so another target without a draft of its own
    runs plainly, and the user is told.
    """
    if options.draft is None and options.target != EMBEDDED:
        warn(f"no --draft given for '{options.target}': decoding plainly, one token a pass")
        return None
    if options.draft == "none":
        return None
    return options.draft or EMBEDDED


def load(options: argparse.Namespace, draft: str | None) -> Engine:
    """The engine that the models' options ask for.

    Raises:
        VispecError: for anything wrong with an option, before a model is loaded where possible.
    """
    quiet_libraries()
    from vispec.decoding.sampling import Sampling
    from vispec.loading import load
    from vispec.messages import Fetcher

    Sampling(**sampling(options))
    return load(
        options.target,
        draft,
        dtype=options.dtype,
        device=_device(options.device),
        tree=options.tree,
        fetch=Fetcher(options.allow_host) if getattr(options, "allow_host", None) else None,
        allow_pickle=options.allow_pickle,
    )


def _device(name: str) -> str:
    """`name`, once a number could be put there."""
    import torch

    if name == "auto":
        return name
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise VispecError(f"device '{name}' cannot be used: {reason}; try --device cpu") from None
    return name
