"""Weights spread over processes that share CPUs, as FSDP 2 does it over accelerators."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


def over_cpus() -> None:
    """Let accelerate do what it does where there are several accelerators."""
    Accelerator.distributed_type = property(lambda self: DistributedType.FSDP)
    Accelerator.is_fsdp2 = property(lambda self: True)
    AcceleratorState.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)


def leave() -> None:
    """End a process together with the others."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # gloo's threads do not always survive the interpreter's end.
        os._exit(0)
