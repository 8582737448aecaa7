"""A small training loop that can be killed at any moment and always ends on time.

It knows nothing about what is trained. You give it a model, a function from step number to batch
and a function from (model, batch) to loss; it gives back the trained model::

    trainer = Trainer(
        model,                              # any nn.Module; its trainable parameters are optimised
        batches=lambda step: ...,           # must depend on the step alone: that is the resume
        loss=lambda model, batch: (loss, {"accuracy": 0.5}),    # scalar tensor, extra numbers
        settings=Settings(folder=Path("run"), learning_rate=1e-3, budget_s=600),
        evaluate=lambda model: {"heldout": 1.23},               # optional
        on_checkpoint=lambda model, progress: ...,              # optional, e.g. save_pretrained
    )
    progress = trainer.run()

* **Optimizer.** AdamW. ``hidden(name, parameter)`` may claim the matrices inside the layers for
  Muon, at ``matrix_rate`` times the learning rate: a vision tower reached the same loss in less
  than half the steps with it. Embeddings, heads and vectors always stay with AdamW.
* **Budget.** ``budget_s`` (wall-clock seconds, kept across kills) or ``budget_steps``. The
  learning rate follows the share of the budget used, so a run is complete whenever it ends.
* **Resume.** Model, optimizer, step, elapsed seconds and the random state of torch are in one
  file, replaced atomically. A new ``Trainer`` on the same folder goes on from there; with
  ``budget_steps`` it ends with the same weights as an uninterrupted run. A finished run only
  loads its weights.
* **Log.** ``log.jsonl`` in the folder, one object a line: ``step``, ``elapsed_s``, ``share``,
  ``learning_rate``, ``loss`` (mean since the last line), the loss function's numbers and, on
  evaluation lines, what ``evaluate`` returned.
* **accelerate.** Pass a prepared model and ``backward=accelerator.backward``; the loop itself
  needs nothing else from it.
* **On a CPU.** Start with another allocator and threads that wait a moment before they sleep:
  ``LD_PRELOAD=libtcmalloc_minimal.so.4 GOMP_SPINCOUNT=20000`` made a step take 0.30 s instead of
  0.53 on two cores (both changed at once; which of them it is was not measured). On cores that
  others use too, add ``OMP_WAIT_POLICY=PASSIVE``: threads that spin while they wait for a
  descheduled one made a step ten times slower here.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vispec.training.muon import Muon

Loss = Callable[[Any, Any], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Settings:
    """How to optimise, for how long, and where to keep the state.

    Attributes:
        folder: receives ``checkpoint.pt`` and ``log.jsonl``.
        learning_rate: the peak, reached after ``warmup_share`` of the budget.
        budget_s, budget_steps: exactly one of them; wall-clock seconds or optimizer steps.
        final_rate: learning rate at the end as a share of the peak (cosine in between).
        matrix_rate: learning rate of Muon's matrices as a multiple of AdamW's.
        autocast: run the loss function in bfloat16 where that is safe.
        checkpoint_s, log_s, evaluate_s: seconds between checkpoints, log lines, evaluations.
    """

    folder: Path
    learning_rate: float
    budget_s: float | None = None
    budget_steps: int | None = None
    warmup_share: float = 0.04
    final_rate: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    matrix_rate: float = 2.0
    autocast: bool = True
    checkpoint_s: float = 300.0
    log_s: float = 20.0
    evaluate_s: float = 300.0

    def __post_init__(self) -> None:
        if (self.budget_s is None) == (self.budget_steps is None):
            raise ValueError(
                f"give exactly one of budget_s and budget_steps, not {self.budget_s} and "
                f"{self.budget_steps}"
            )


@dataclass
class Progress:
    """Where a run stands: optimizer steps done and seconds spent, earlier starts included."""

    step: int = 0
    elapsed_s: float = 0.0


class Trainer:
    """Runs one phase of training; see the module's text for the contract."""

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[int], Any],
        loss: Loss,
        settings: Settings,
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        on_checkpoint: Callable[[nn.Module, Progress], None] | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        hidden: Callable[[str, nn.Parameter], bool] = lambda name, parameter: False,
    ) -> None:
        self.model, self.batches, self.loss = model, batches, loss
        self.settings, self.evaluate, self.on_checkpoint = settings, evaluate, on_checkpoint
        self.backward = backward
        self.progress = Progress()
        self.optimizers = _optimizers(model, settings, hidden)
        settings.folder.mkdir(parents=True, exist_ok=True)

    @property
    def share(self) -> float:
        """How much of the budget is used, 0 to 1."""
        if self.settings.budget_steps is not None:
            return min(1.0, self.progress.step / max(1, self.settings.budget_steps))
        return min(1.0, self.progress.elapsed_s / max(1e-9, self.settings.budget_s or 0.0))

    def run(self) -> Progress:
        """Train to the end of the budget, from the last checkpoint if there is one."""
        self._load()
        settings, progress = self.settings, self.progress
        began = time.monotonic() - progress.elapsed_s
        logged = saved = evaluated = progress.elapsed_s
        losses: list[float] = []
        numbers: dict[str, float] = {}
        steps_logged = progress.step
        self.model.train()
        finished = self.share >= 1.0
        while self.share < 1.0:
            batch = self.batches(progress.step)
            scale = rate(self.share, settings.warmup_share, settings.final_rate)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * scale
            device = next(self.model.parameters()).device.type
            with torch.autocast(device, torch.bfloat16, enabled=settings.autocast):
                loss, numbers = self.loss(self.model, batch)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} at step {progress.step}; lower the "
                    f"learning rate ({settings.learning_rate})"
                )
            self.model.zero_grad(set_to_none=True)
            self.backward(loss)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
            progress.step += 1
            progress.elapsed_s = time.monotonic() - began
            losses.append(value)
            ended = self.share >= 1.0
            if ended or progress.elapsed_s - logged >= settings.log_s:
                self._log(
                    {
                        "loss": sum(losses) / len(losses),
                        "gradient_norm": float(norm),
                        **numbers,
                        "step_s": (progress.elapsed_s - logged) / (progress.step - steps_logged),
                    }
                )
                losses, logged, steps_logged = [], progress.elapsed_s, progress.step
            if self.evaluate and (ended or progress.elapsed_s - evaluated >= settings.evaluate_s):
                self._evaluate()
                progress.elapsed_s = logged = evaluated = time.monotonic() - began
                steps_logged = progress.step
            if not ended and progress.elapsed_s - saved >= settings.checkpoint_s:
                self._save()
                progress.elapsed_s = saved = time.monotonic() - began
        if not finished:
            self._save()
        return progress

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self.model.eval()
        # An evaluation may draw random numbers; the training after it must not notice.
        state = torch.get_rng_state()
        with torch.no_grad():
            self._log(self.evaluate(self.model))
        torch.set_rng_state(state)
        self.model.train()

    def _log(self, numbers: dict[str, float]) -> None:
        line = {
            "step": self.progress.step,
            "elapsed_s": round(self.progress.elapsed_s, 1),
            "share": round(self.share, 4),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            **numbers,
        }
        with (self.settings.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
        print(self.settings.folder.name, shown, flush=True)

    def _save(self) -> None:
        path = self.settings.folder / "checkpoint.pt"
        random = torch.get_rng_state()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "progress": asdict(self.progress),
                "random": random,
            },
            path.with_suffix(".tmp"),
        )
        os.replace(path.with_suffix(".tmp"), path)
        if self.on_checkpoint:
            self.on_checkpoint(self.model, self.progress)
            self.model.train()
            torch.set_rng_state(random)

    def _load(self) -> None:
        path = self.settings.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(kept)
            # A run may be resumed with other settings: they win over the checkpoint's.
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["random"])


def rate(share: float, warmup_share: float, final_rate: float) -> float:
    """Learning rate over its peak: linear warm-up, then a cosine down to ``final_rate``."""
    if share < warmup_share:
        return max(share / warmup_share, 0.02)
    turned = (share - warmup_share) / max(1e-9, 1.0 - warmup_share)
    return final_rate + (1.0 - final_rate) * 0.5 * (1.0 + math.cos(math.pi * turned))


def _optimizers(
    model: nn.Module, settings: Settings, hidden: Callable[[str, nn.Parameter], bool]
) -> list[torch.optim.Optimizer]:
    """AdamW (matrices decay, vectors do not) and, where ``hidden`` claims any, Muon."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    claimed = [p for name, p in trained if p.ndim == 2 and hidden(name, p)]
    taken = {id(p) for p in claimed}
    rest = [p for _, p in trained if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    peak = settings.learning_rate
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=peak, betas=settings.betas, fused=True)
    ]
    if claimed:
        optimizers.append(
            Muon(
                claimed,
                lr=peak * settings.matrix_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
