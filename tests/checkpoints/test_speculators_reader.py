"""What vispec exports, loaded and run by the speculators package itself, where it is installed.

The package asks for more than these tests need: `pip install --no-deps speculators==0.9.0`, and
what importing it then misses. On a processor, `TORCHDYNAMO_DISABLE=1` saves compiling its masks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from recordings import FIXTURES, cases
from vispec.checkpoints import registry
from vispec.checkpoints.export import export

speculators = pytest.importorskip("speculators")


def exported(case: str, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """A recorded draft, read and written by us, and loaded by them; what was recorded of it."""
    found = load_file(FIXTURES / f"{case}.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in found.items() if k.startswith("weight.")}
    config = json.loads((FIXTURES / f"{case}.json").read_text())["config"]
    draft = registry.from_tensors(config, weights, case)
    c = draft.config
    # They take what a draft shares from its target.
    target = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.target_hidden_size,
            intermediate_size=16,
            num_hidden_layers=8,
            num_attention_heads=4,
        )
    )
    target.save_pretrained(folder / "target")
    export(draft, folder, "speculators", target=str(folder / "target"))
    model = speculators.SpeculatorModel.from_pretrained(folder).float().eval()
    state = model.state_dict()
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(state[name].to(value.dtype), value), name
    return model, {k: v for k, v in found.items() if not k.startswith("weight.")}


@pytest.mark.parametrize("case", cases("speculators_draft", "eagle3*"))
@torch.inference_mode()
def test_their_eagle3_computes_what_was_recorded(case: str, tmp_path: Path) -> None:
    model, record = exported(case, tmp_path)
    tokens = record["tokens"][None]
    seen: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out))
    model(
        record["features"][None],
        tokens,
        torch.zeros_like(tokens),
        position_ids=torch.arange(tokens.shape[1])[None],
        ttt_steps=1,
    )
    hook.remove()
    torch.testing.assert_close(seen[0][0], record["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", [*cases("speculators_draft", "dflash*"), *cases("speculators_draft", "dspark*")]
)
def test_their_block_drafts_take_every_tensor(case: str, tmp_path: Path) -> None:
    model, _ = exported(case, tmp_path)
    assert not any(parameter.is_meta for parameter in model.parameters())
