"""Training by processes that share CPUs: whole weights in each, or spread as over accelerators."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

DEEPSPEED = Path(sys.prefix) / "deepspeed"
"""Where it is installed for its tests: accelerate would import it in every process."""


def by_fsdp() -> None:
    """Let accelerate do what it does where there are several accelerators."""
    Accelerator.distributed_type = property(lambda self: DistributedType.FSDP)
    Accelerator.is_fsdp2 = property(lambda self: True)
    AcceleratorState.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)


def by_deepspeed() -> None:
    """Let accelerate start DeepSpeed without an accelerator."""
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)


WAYS: dict[str, Callable[[], None]] = {
    "whole": lambda: None,
    "fsdp": by_fsdp,
    "deepspeed": by_deepspeed,
}


PARAMETERS = [
    pytest.param("fsdp"),
    pytest.param(
        "deepspeed",
        marks=pytest.mark.skipif(
            not DEEPSPEED.exists(), reason=f"make installs deepspeed into {DEEPSPEED}"
        ),
    ),
]


def run(way: str, script: Path, *arguments: object) -> None:
    """Run a script in two processes, which begin with `WAYS[way]()`; in one without a way."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if way == "deepspeed":
        paths = [str(DEEPSPEED / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment |= {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
            "PYTHONPATH": str(DEEPSPEED),
            "PATH": os.pathsep.join(paths),
        }
    else:
        environment |= {"ACCELERATE_USE_CPU": "true"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *(launch if way else []), str(script), way, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def leave() -> None:
    """End a process together with the others."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # gloo's threads do not always survive the interpreter's end.
        os._exit(0)
