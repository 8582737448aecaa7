"""Writing drafts in the formats that engines load; `docs/checkpoints.md` says which loads what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from vispec.checkpoints.files import LICENCE_FILES, fetch, licence
from vispec.checkpoints.registry import file_of
from vispec.drafts.compression import compression_of
from vispec.errors import CheckpointError, VispecError

FORMATS = ("vispec", "eagle", "eagle3", "medusa", "dflash", "dspark", "speculators")


def export(
    draft: nn.Module,
    folder: str | os.PathLike[str],
    form: str,
    *,
    closest: bool = False,
    **extra: Any,
) -> list[str]:
    """Write a draft in a format of `FORMATS`.

    Args:
        draft: what to write.
        folder: is made where it does not exist.
        form: the format.
        closest: where the format cannot represent the draft, write what comes closest.
        extra: further configuration entries, such as `target`.

    Returns:
        one sentence for everything that was left out.

    Raises:
        CheckpointError: for a draft of another kind, or one that the format cannot represent.
    """
    name, file = str(getattr(draft, "name", type(draft).__name__)), file_of(draft)
    kind, forms = (file.kind(draft), file.forms(draft)) if file else (type(draft).__name__, ())
    if form not in FORMATS:
        raise CheckpointError(
            name, f"cannot be exported as '{form}'", fix=f"Known are: {', '.join(FORMATS)}."
        )
    if compression_of(draft):
        raise CheckpointError(
            name,
            f"has compressed matrices, for which the format '{form}' has no word",
            fix="Export it as it was before, or save it with save_pretrained.",
        )
    if file is None or form not in forms:
        raise CheckpointError(
            name,
            f"is of the kind {kind}, which the format '{form}' cannot hold",
            fix=f"It can be exported as: {', '.join(forms) or 'nothing'}.",
        )
    said: list[str] = []
    words = file.unsaid(draft, form)
    if words:
        nearest, left_out = file.closest(draft, form)
        possible = nearest is not None and not file.unsaid(nearest, form)
        if not (closest and possible):
            whole = [f"--format {other}" for other in forms if not file.unsaid(draft, other)]
            ways = whole + (["--closest, which leaves that out"] if possible else [])
            raise CheckpointError(
                name,
                f"has {' and '.join(words)}, for which the format '{form}' has no word",
                fix=f"Export it with {' or with '.join(ways)}." if ways else "",
            )
        draft, said = nearest, left_out
    file.write(draft, folder, form, **extra)
    return said


def refuse_own_folder(place: str, folder: str | os.PathLike[str]) -> None:
    """Raise `VispecError` if a checkpoint would be written over."""
    if os.path.exists(folder) and os.path.samefile(folder, place):
        raise VispecError(f"'{folder}' is the draft's own folder; write to another one")


def carry_licence(place: str, folder: str | os.PathLike[str]) -> str | None:
    """Put the licence of a checkpoint into a folder that its weights were written to.

    Args:
        place: the folder or hub repository that they come from.
        folder: where they are now.

    Returns:
        its name, None where none is stated.
    """
    stated = licence(place)
    if stated is None:
        return None
    for name in LICENCE_FILES:
        file = fetch(place, name)
        if file is not None:
            (Path(folder) / name).write_bytes(file.read_bytes())
            return stated
    card = f"---\nlicense: {stated}\n---\n\nThe weights come from {place}.\n"
    (Path(folder) / "README.md").write_text(card, encoding="utf-8")
    return stated


def write(draft: nn.Module, folder: str | os.PathLike[str], **extra: Any) -> str:
    """Write a draft in the format of its own kind, which holds all of it.

    Args:
        draft: what to write.
        folder: is made where it does not exist.
        extra: further configuration entries, such as `target`.

    Returns:
        the format.

    Raises:
        CheckpointError: for what is no draft of a known kind.
    """
    form, settings = own_format(draft), compression_of(draft)
    if settings:
        extra["compression"] = settings
    file = file_of(draft)
    assert file is not None
    file.write(draft, folder, form, **extra)
    return form


def own_format(draft: nn.Module) -> str:
    """The format that holds all of a draft.

    Raises:
        CheckpointError: for what is no draft of a known kind.
    """
    file = file_of(draft)
    if file is None:
        kind = type(draft).__name__
        raise CheckpointError(kind, "is no draft of a known kind")
    return next(form for form in file.forms(draft) if not file.unsaid(draft, form))
