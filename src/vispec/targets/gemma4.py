"""Gemma 4: its own forward takes a placeholder that it says for padding."""

from __future__ import annotations

import torch
from torch import Tensor

from vispec.targets.base import Target


class Gemma4Target(Target):
    """`Gemma4ForConditionalGeneration`; what its layers see is as of Gemma 3."""

    model_types = ("gemma4",)

    @property
    def logit_cap(self) -> float | None:
        return self.text_config.final_logit_softcapping

    def input_tokens(self, token: Tensor) -> Tensor:
        placeholders = [
            getattr(self.config, f"{kind}_token_id") for kind in ("image", "video", "audio")
        ]
        shown = torch.isin(token, torch.tensor(placeholders, device=token.device))
        return torch.where(shown, self.text_config.pad_token_id, token)
