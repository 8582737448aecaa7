"""Where a checkpoint comes from."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("vispec", "torch", "transformers", "accelerate", "safetensors", "numpy")


def provenance(command: str, data: Path, sources: Iterable[str]) -> dict[str, Any]:
    """Command, commit, versions, machine, and a digest of every file of answers.

    Args:
        data: a folder with one of answers for every source.
    """
    files = sorted(path for name in sources for path in (data / name).glob("*.parquet"))
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: _version(name) for name in PACKAGES},
        "data": {str(path.relative_to(data)): _digest(path) for path in files},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str:
    """The commit that this is running from, `" changed"` behind it where code differs from it.

    Empty outside a checkout.
    """
    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
    return f"{head} changed" if head and changed else head


def git(*words: str) -> str:
    """What git says of the checkout that this is running from; nothing outside one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "src" / "vispec").is_dir():
        return ""  # installed, perhaps inside of a checkout of something else
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=root)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
