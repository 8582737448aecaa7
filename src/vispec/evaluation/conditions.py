"""What measured numbers depend on: the machine, the software and the source."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vispec.training import scenes
from vispec.training.provenance import commit

_SETTINGS = ("LD_PRELOAD", "GLIBC_TUNABLES", "GOMP_", "OMP_", "KMP_", "MKL_", "TORCHINDUCTOR_")
"""Beginnings of the environment variables that change how fast torch is."""
_ROOT = Path(__file__).resolve().parents[3]
_CODE = (".py", ".toml")


def conditions() -> dict[str, Any]:
    """Machine, versions and settings, fit for JSON; `fonts` decide what rendered scenes show."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    return {
        "processor": names[0] if names else platform.processor(),
        "flags": [f for f in flags if f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fonts": len(scenes.fonts()),
        "settings": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_SETTINGS) and not name.endswith("_DIR")
        },
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "vispec")},
    }


def source(*paths: str) -> dict[str, str]:
    """A digest of the code in files and folders of the checkout that this is running from, by path.

    What is not there is left out, as everything is outside of a checkout.
    """
    found = {}
    for path in paths:
        place = _ROOT / path
        files = [place] if place.is_file() else [p for p in place.rglob("*") if p.suffix in _CODE]
        if files:
            whole = hashlib.sha256()
            for file in sorted(files):
                whole.update(f"{file.relative_to(_ROOT).as_posix()}\0".encode())
                whole.update(hashlib.sha256(file.read_bytes()).digest())
            found[path] = whole.hexdigest()[:12]
    return found


__all__ = ["commit", "conditions", "source"]
