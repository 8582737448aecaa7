"""What measured numbers depend on: the machine, the software and the source."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vispec.training import scenes
from vispec.training.provenance import commit, git

_SETTINGS = ("LD_PRELOAD", "GLIBC_TUNABLES", "GOMP_", "OMP_", "KMP_", "MKL_", "TORCHINDUCTOR_")
"""Beginnings of the environment variables that change how fast torch is."""


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
    """The state of files and folders of the checkout that this is running from, by path.

    Returns:
        git's hash of each, `"changed"` behind it where the work tree differs; empty outside a
        checkout.
    """
    found = {}
    for path in paths:
        if known := git("rev-parse", "--short=12", f"HEAD:{path}"):
            changed = git("status", "--porcelain", "--", path)
            found[path] = f"{known} changed" if changed else known
    return found


__all__ = ["commit", "conditions", "source"]
