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
* **Resume.** Model, optimizers, step, elapsed seconds and the random states are in the folder
  ``checkpoint``, replaced atomically. A new ``Trainer`` on the same folder goes on from there; with
  ``budget_steps`` it ends with the same weights as an uninterrupted run. A finished run only loads
  its weights.
* **Log.** ``log.jsonl`` in the folder, one object a line: ``step``, ``elapsed_s``, ``share``,
  ``learning_rate``, ``loss`` (mean since the last line), the loss function's numbers and, on
  evaluation lines, what ``evaluate`` returned; and the same for tensorboard, where it is installed.
* **Several processes.** Under ``accelerate launch`` each takes its part of every batch, and the
  weights become what one process would have made of all of it, but for numbers that the loss
  function draws, which are others. ``split`` says how a batch is taken
  apart, ``load`` what a part is, in pieces that fit into memory, and ``weigh`` how much a piece
  counts in a mean over all. ``settings.accumulate`` takes batches apart likewise. What learns must
  be called through the model that the loss function is given. Where FSDP spreads the weights
  (version 2), the model given here is brought up to date whenever it is evaluated, kept, or
  returned.
* **On a CPU.** Start with another allocator and threads that wait a moment before they sleep:
  ``LD_PRELOAD=libtcmalloc_minimal.so.4 GOMP_SPINCOUNT=20000`` made a step take 0.30 s instead of
  0.53 on two cores (both changed at once; which of them it is was not measured). On cores that
  others use too, add ``OMP_WAIT_POLICY=PASSIVE``: threads that spin while they wait for a
  descheduled one made a step ten times slower here.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vispec.errors import DivergedError, SettingsError
from vispec.training.curves import read_log
from vispec.training.muon import Muon
from vispec.writing import former, replace_folder, saving, write_json

CHECKPOINT = "checkpoint"
BEST = "best.pt"
Loss = Callable[[Any, Any], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Settings:
    """How to optimise, for how long, and where to keep the state.

    Attributes:
        folder: receives ``checkpoint`` and ``log.jsonl``.
        learning_rate: the peak, reached after ``warmup_share`` of the budget.
        budget_s, budget_steps: exactly one of them; wall-clock seconds or optimizer steps.
        clip_norm, clip_value: longest gradient, and the largest of its numbers; 0 for no limit.
        final_rate: learning rate at the end as a share of the peak (cosine in between).
        matrix_rate: learning rate of Muon's matrices as a multiple of AdamW's; 0 for AdamW alone.
        autocast: run the loss function in bfloat16 where that is safe.
        checkpoint_s, log_s, evaluate_s: seconds between checkpoints, log lines, evaluations.
        evaluate_steps: steps between evaluations instead, where it is not 0.
        accumulate: parts that a process takes its batch apart into, one after another.
        ema: decay a step of a running mean of the weights, which is what is evaluated and what is
            left at the end; 0 for none.
        watch: the number of ``evaluate`` that should grow.
        patience: evaluations in a row without a better one, after which the run ends, and the best
            one's weights are what is left; 0 for none.
        clock: what all seconds are counted by; `time.process_time` for runs that are compared on a
            machine which does other things too.
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
    clip_value: float = 0.0
    matrix_rate: float = 2.0
    autocast: bool = True
    checkpoint_s: float = 300.0
    log_s: float = 20.0
    evaluate_s: float = 300.0
    evaluate_steps: int = 0
    accumulate: int = 1
    ema: float = 0.0
    watch: str = ""
    patience: int = 0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if (self.budget_s is None) == (self.budget_steps is None):
            raise ValueError(
                f"give exactly one of budget_s and budget_steps, not {self.budget_s} and "
                f"{self.budget_steps}"
            )


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        elapsed_s: seconds spent, earlier starts included.
        best: of the number that is watched.
        waited: evaluations since then.
    """

    step: int = 0
    elapsed_s: float = 0.0
    best: float = -math.inf
    waited: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


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
        hidden: Callable[[str, nn.Parameter], bool] = lambda name, parameter: False,
        split: Callable[[Any, int], list[Any]] | None = None,
        load: Callable[[Any], list[Any]] = lambda part: [part],
        weigh: Callable[[Any], float] = lambda piece: 1.0,
        names: Callable[[Any], str] = lambda piece: "",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Args beyond the module's text.

        Args:
            names: what a piece is called, for messages.
            origin: where checkpoints come from; kept beside each as ``provenance.json``.
        """
        self.model, self.batches, self.loss = model, batches, loss
        self.settings, self.evaluate, self.on_checkpoint = settings, evaluate, on_checkpoint
        self.split, self.load, self.weigh, self.names = split, load, weigh, names
        self.origin = origin
        # The model is where it is to be already, and a stage says itself what it computes in.
        self.accelerator = Accelerator(
            device_placement=False,
            mixed_precision="no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        # Parts of a batch are as large on every process as on one.
        self.parts = self.accelerator.num_processes * settings.accumulate
        if self.parts > 1 and split is None:
            raise ValueError(f"batches are to be taken apart into {self.parts}: give split")
        self.progress = Progress()
        self.device = next(model.parameters()).device
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self.engine = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self._refuse_what_cannot_be_spread()
        if self.engine:
            self._tell_the_engine()
        # Sharding changes a module for good; the one that was given stays as it is.
        learning = copy.deepcopy(model) if self.sharded else model
        optimizers = optimizers_of(learning, settings, hidden)
        if (self.sharded or self.engine) and len(optimizers) > 1:
            spreads = "FSDP" if self.sharded else "DeepSpeed"
            raise SettingsError(
                f"Muon needs whole matrices, and {spreads} spreads them", "Use AdamW."
            )
        self.running, *self.optimizers = self.accelerator.prepare(learning, *optimizers)
        self.mean = None
        if settings.ema:
            self.mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
            self.accelerator.register_for_checkpointing(self.mean)
        self.accelerator.register_for_checkpointing(self.progress)
        settings.folder.mkdir(parents=True, exist_ok=True)
        self._board: Any = None
        self._from_step = 0

    def _refuse_what_cannot_be_spread(self) -> None:
        if self.accelerator.distributed_type == DistributedType.MEGATRON_LM:
            raise SettingsError(
                "training was started under Megatron-LM, which has layers of its own",
                "Choose several processes, FSDP 2, or DeepSpeed, in accelerate config.",
            )
        if self.engine:
            plugin = self.accelerator.state.deepspeed_plugin
            if plugin.zero_stage not in (1, 2):
                raise SettingsError(
                    f"training was started under DeepSpeed with ZeRO stage {plugin.zero_stage}",
                    "Set zero_stage to 1 or 2.",
                )
            if self.accelerator.mixed_precision != "no":
                raise SettingsError(
                    f"DeepSpeed was asked to train in {self.accelerator.mixed_precision}",
                    "Set mixed_precision to 'no': a stage's bf16 does it, with weights in float32.",
                )
            if self.settings.clip_value:
                raise SettingsError(
                    "DeepSpeed limits no single numbers of a gradient", "Use clip, not clip_value."
                )
        if not self.sharded:
            return
        if not self.accelerator.is_fsdp2:
            raise SettingsError("training was started under FSDP 1", "Set fsdp_version to 2.")
        if self.settings.ema:
            raise SettingsError("no running mean (ema) is kept of weights that FSDP spreads")

    def _tell_the_engine(self) -> None:
        """What DeepSpeed does by itself; the sizes are only there because it asks for them."""
        stated = self.accelerator.state.deepspeed_plugin.deepspeed_config
        stated["gradient_clipping"] = self.settings.clip_norm
        stated["gradient_accumulation_steps"] = stated["train_micro_batch_size_per_gpu"] = 1

    def _gather(self) -> None:
        """Bring the model up to date where its weights are spread over processes."""
        if self.sharded:
            whole = StateDictOptions(full_state_dict=True)
            self.model.load_state_dict(get_model_state_dict(self.running, options=whole))

    @property
    def share(self) -> float:
        """How much of the budget is used, 0 to 1."""
        settings, progress = self.settings, self.progress
        if settings.patience and progress.waited >= settings.patience:
            return 1.0
        if settings.budget_steps is not None:
            return min(1.0, progress.step / max(1, settings.budget_steps))
        return min(1.0, progress.elapsed_s / max(1e-9, settings.budget_s or 0.0))

    def run(self) -> Progress:
        """Train to the end of the budget, from the last checkpoint if there is one."""
        self._load()
        self._from_step = self.progress.step
        settings, progress = self.settings, self.progress
        self._began = settings.clock() - progress.elapsed_s
        logged = saved = evaluated = progress.elapsed_s
        losses: list[float] = []
        steps_logged = progress.step
        self.running.train()
        finished = self.share >= 1.0
        while self.share < 1.0:
            value, norm, numbers = self._step()
            progress.step += 1
            progress.elapsed_s = self._elapsed()
            losses.append(value)
            ended = self.share >= 1.0
            if settings.evaluate_steps:
                due = progress.step % settings.evaluate_steps == 0
            else:
                due = progress.elapsed_s - evaluated >= settings.evaluate_s
            judged = (ended or due) and self.evaluate is not None
            if ended or judged or progress.elapsed_s - logged >= settings.log_s:
                self._log(
                    {
                        "loss": sum(losses) / len(losses),
                        "gradient_norm": norm,
                        **numbers,
                        "step_s": (progress.elapsed_s - logged) / (progress.step - steps_logged),
                    }
                )
                losses, logged, steps_logged = [], progress.elapsed_s, progress.step
            if judged:
                self._evaluate()
                progress.elapsed_s = logged = evaluated = self._elapsed()
                steps_logged = progress.step
            if self.share < 1.0 and progress.elapsed_s - saved >= settings.checkpoint_s:
                self._save()
                progress.elapsed_s = saved = self._elapsed()
        if not finished:
            self._save()
        self._gather()
        if self.mean is not None:
            self.model.load_state_dict(self.mean.module.state_dict())
        if settings.patience and (best := settings.folder / BEST).exists():
            self.model.load_state_dict(torch.load(best, self.device, weights_only=True))
        return progress

    def _elapsed(self) -> float:
        """Seconds spent, the same on every process."""
        return self._agreed(self.settings.clock() - self._began)

    def _agreed(self, number: float) -> float:
        """What the first process has for it."""
        if self.accelerator.num_processes == 1:
            return number
        return float(broadcast(torch.tensor(number, dtype=torch.float64, device=self.device)))

    def _step(self) -> tuple[float, float, dict[str, float]]:
        """One optimizer step: its loss, the norm of its gradient, the loss function's numbers."""
        settings, accelerator = self.settings, self.accelerator
        batch = self.batches(self.progress.step)
        scale = rate(self.share, settings.warmup_share, settings.final_rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale
        parts = [batch] if self.split is None else self.split(batch, self.parts)
        mine = parts[accelerator.process_index :: accelerator.num_processes]
        pieces = [piece for part in mine for piece in self.load(part)]
        weights = [self.weigh(piece) for piece in pieces]
        whole, most = self._over_all(sum(weights), len(pieces))
        # Every process takes as many, or they would wait for each other for ever.
        lacking = most - len(pieces)
        pieces += (pieces or self.load(parts[0]))[:1] * lacking
        weights += [0.0] * lacking
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total, value, numbers = torch.zeros((), device=self.device), 0.0, dict[str, float]()
        for place, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
            last = place == len(pieces) - 1
            with nullcontext() if last or self.engine else accelerator.no_sync(self.running):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.autocast):
                    loss, numbers = self.loss(self.running, piece)
                share = weight / whole
                total += loss.detach() * share
                if last:
                    value = float(accelerator.reduce(total))
                    self._refuse_unless_finite("loss", value, pieces)
                # Gradients of processes are averaged.
                self._backward(loss * (share * accelerator.num_processes), last)
        norm = self._update(pieces)
        if self.mean is not None:
            self.mean.update_parameters(self.model)
        return value, norm, numbers

    def _backward(self, loss: Tensor, last: bool) -> None:
        if not self.engine:
            self.accelerator.backward(loss)
            return
        # accelerate would have it step behind every piece.
        self.running.set_gradient_accumulation_boundary(is_boundary=last)
        self.running.backward(loss)

    def _update(self, pieces: Sequence[Any]) -> float:
        """Step, by gradients within their limits; returns how long they were before."""
        settings, accelerator = self.settings, self.accelerator
        if self.engine:
            self.running.step()
            norm = float(self.running.get_global_grad_norm())
            self._refuse_unless_finite("norm of the gradient", norm, pieces)
            return norm
        longest = settings.clip_norm or math.inf
        norm = float(accelerator.clip_grad_norm_(self.running.parameters(), longest))
        self._refuse_unless_finite("norm of the gradient", norm, pieces)
        if settings.clip_value:
            nn.utils.clip_grad_value_(self.running.parameters(), settings.clip_value)
        for optimizer in self.optimizers:
            optimizer.step()
        return norm

    def _over_all(self, weight: float, pieces: int) -> tuple[float, int]:
        """The sum of all processes' weights, and the most pieces that any of them has."""
        if self.accelerator.num_processes == 1:
            return weight, pieces
        own = torch.zeros(self.accelerator.num_processes, 2, device=self.device)
        own[self.accelerator.process_index] = torch.tensor([weight, pieces])
        found = self.accelerator.reduce(own)
        return float(found[:, 0].sum()), int(found[:, 1].max())

    def _refuse_unless_finite(self, what: str, value: float, pieces: Sequence[Any]) -> None:
        if math.isfinite(value):
            return
        folder = self.settings.folder / CHECKPOINT
        called = ", ".join(filter(None, map(self.names, pieces)))
        kept = f"the last good checkpoint is in {folder}" if folder.exists() else "nothing was kept"
        raise DivergedError(
            f"the {what} is {value} at step {self.progress.step}"
            + (f", at {called}" if called else "")
            + f"; {kept}; go on with a lower learning rate than"
            f" {self.settings.learning_rate}, or begin anew without those"
        )

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self._gather()
        judged = self.model if self.mean is None else self.mean.module
        judged.eval()
        # An evaluation may draw random numbers; the training after it must not notice.
        state = torch.get_rng_state()
        with torch.no_grad():
            found = self.evaluate(judged)
        torch.set_rng_state(state)
        judged.train()
        watched = found.get(self.settings.watch)
        if watched is not None:
            # Devices may round differently, and whoever saw no gain would stop alone.
            watched = self._agreed(watched)
        if watched is not None and watched > self.progress.best:
            self.progress.best, self.progress.waited = watched, 0
            if self.settings.patience and self.accelerator.is_main_process:
                best = self.settings.folder / BEST
                with saving(best):
                    torch.save(judged.state_dict(), best.with_suffix(".tmp"))
                best.with_suffix(".tmp").replace(best)
        elif watched is not None:
            self.progress.waited += 1
        self._log(found)

    def _log(self, numbers: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        line = {
            "step": self.progress.step,
            "elapsed_s": round(self.progress.elapsed_s, 1),
            "share": round(self.share, 4),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            **numbers,
        }
        with (self.settings.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier start logged beyond its checkpoint is done again.
            self._board = self._board or SummaryWriter(
                str(self.settings.folder), purge_step=self._from_step + 1
            )
            for name, value in numbers.items():
                self._board.add_scalar(name, value, self.progress.step)
            self._board.flush()
        shown = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}
        print(self.settings.folder.name, shown, flush=True)

    def _save(self) -> None:
        folder = self.settings.folder
        fresh, kept = folder / f"{CHECKPOINT}.new", folder / CHECKPOINT
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(fresh, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with saving(fresh):
            self.accelerator.save_state(str(fresh))
        self.accelerator.wait_for_everyone()
        if main and self.origin is not None:
            facts = {**self.origin, "step": self.progress.step}
            write_json(fresh / "provenance.json", facts)
        if main:
            replace_folder(fresh, kept)
        self.accelerator.wait_for_everyone()
        if self.on_checkpoint:
            self._gather()
        if self.on_checkpoint and main:
            random = torch.get_rng_state()
            self.on_checkpoint(self.model, self.progress)
            self.model.train()
            torch.set_rng_state(random)

    def _load(self) -> None:
        folder = self.settings.folder
        kept = folder / CHECKPOINT
        found = kept if kept.exists() else former(kept)
        if not found.exists():
            if self.accelerator.is_main_process:
                (folder / "log.jsonl").unlink(missing_ok=True)  # of steps that are done again
            return
        peaks = [[group["peak"] for group in o.param_groups] for o in self.optimizers]
        self.accelerator.load_state(str(found))
        if self.accelerator.is_main_process:
            # What was logged since is done again.
            kept_lines = [line for line in read_log(folder) if line["step"] <= self.progress.step]
            fresh = folder / "log.tmp"
            fresh.write_text("".join(json.dumps(line) + "\n" for line in kept_lines))
            fresh.replace(folder / "log.jsonl")
        for optimizer, own in zip(self.optimizers, peaks, strict=True):
            # A run may be resumed with other settings: they win over the checkpoint's.
            for group, peak in zip(optimizer.param_groups, own, strict=True):
                group["peak"] = peak


def rate(share: float, warmup_share: float, final_rate: float) -> float:
    """Learning rate over its peak: linear warm-up, then a cosine down to ``final_rate``."""
    if share < warmup_share:
        return max(share / warmup_share, 0.02)
    turned = (share - warmup_share) / max(1e-9, 1.0 - warmup_share)
    return final_rate + (1.0 - final_rate) * 0.5 * (1.0 + math.cos(math.pi * turned))


def optimizers_of(
    model: nn.Module, settings: Settings, hidden: Callable[[str, nn.Parameter], bool]
) -> list[torch.optim.Optimizer]:
    """AdamW (matrices decay, vectors do not) and, where ``hidden`` claims any, Muon.

    The ``peak`` of each parameter group is the highest learning rate that it is to have.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    by_muon = settings.matrix_rate > 0
    claimed = [p for name, p in trained if by_muon and p.ndim == 2 and hidden(name, p)]
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
