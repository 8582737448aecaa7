"""Files and folders that are whole or not there, whatever stops the program."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Make an `OSError` that names `path` of what libraries raise where a disk is full."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        # torch has no exception of its own for a file that it cannot write.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from error


@contextmanager
def replacing_file(kept: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `kept` once all of it is written.

    Several workers may write one file at the same time.
    """
    fresh = kept.with_name(f"{kept.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield fresh
        fresh.replace(kept)
    finally:
        fresh.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A file of JSON."""
    with replacing_file(path) as fresh:
        fresh.write_text(json.dumps(value, indent=1) + "\n")


def replace_folder(fresh: Path, kept: Path) -> None:
    """Put a folder in the place of another, which is `former(kept)` for a moment.

    At every moment one of the two is whole.
    """
    old = former(kept)
    if kept.exists():
        shutil.rmtree(old, ignore_errors=True)
        kept.rename(old)
    fresh.rename(kept)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(kept: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `kept` once all of it is written."""
    fresh = kept.with_name(f"{kept.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    replace_folder(fresh, kept)


def former(kept: Path) -> Path:
    """Where a folder is while another takes its place."""
    return kept.with_name(f"{kept.name}.old")
