"""Block drafts' networks do what was recorded of the published DFlash draft."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recordings import FIXTURES, cases
from vispec.checkpoints.registry import from_tensors
from vispec.drafts.block import BlockConfig, BlockNetwork, MarkovHead

CASES = cases("dflash_draft")


@pytest.fixture(params=CASES)
def recording(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Tensor]]:
    meta = json.loads((FIXTURES / f"{request.param}.json").read_text())
    return meta, load_file(FIXTURES / f"{request.param}.safetensors")


@pytest.mark.parity
@torch.inference_mode()
def test_two_blocks_come_out_as_recorded(
    recording: tuple[dict[str, Any], dict[str, Tensor]],
) -> None:
    meta, tensors = recording
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    network = from_tensors(meta["config"], weights, "recorded")
    features = tensors["target_hidden"]
    root = tensors["input_ids"][:, -1:]
    for turn in ("block1", "block2"):
        t, n = features.shape[1], network.config.block_size
        masks = torch.full((1, n - 1), network.config.mask_token_id)
        x = tensors["embed.weight"][torch.cat([root, masks], 1)]
        context = network.context(features, torch.arange(t)[None])
        hidden = network(x, torch.arange(t, t + n)[None], context)
        torch.testing.assert_close(hidden, tensors[f"{turn}.hidden"], rtol=0, atol=1e-5)
        logits = hidden[:, 1:] @ tensors["head.weight"].T
        torch.testing.assert_close(logits, tensors[f"{turn}.logits"], rtol=0, atol=1e-5)
        features = torch.cat([features, tensors["advance.target_hidden"]], 1)
        root = tensors["advance.tokens"][:, -1:]


def test_layers_are_read_one_further_than_z_lab_counts_them(
    recording: tuple[dict[str, Any], dict[str, Tensor]],
) -> None:
    meta, tensors = recording
    weights = {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}
    ids = meta["config"]["dflash_config"]["target_layer_ids"]
    network = from_tensors(meta["config"], weights, "recorded")
    assert network.config.aux_layers == tuple(i + 1 for i in ids)


def config(**options: Any) -> BlockConfig:
    geometry = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 20,
        "draft_vocab_size": 12,
        "block_size": 5,
        "mask_token_id": 19,
        "aux_layers": (1, 2),
    }
    return BlockConfig(**(geometry | options))


@torch.inference_mode()
def test_rows_of_a_block_see_each_other_and_a_mask_can_hide_them() -> None:
    torch.manual_seed(0)
    network = BlockNetwork(config(num_hidden_layers=2)).eval()
    features, x = torch.randn(1, 6, 32), torch.randn(1, 5, 16)
    context = network.context(features, torch.arange(6)[None])
    position = torch.arange(6, 11)[None]
    changed = x.clone()
    changed[:, 4] += 1
    before, after = (network(rows, position, context)[:, 0] for rows in (x, changed))
    assert not torch.allclose(before, after)
    causal = torch.ones(5, 11).triu(7) * torch.finfo(torch.float32).min
    hidden = [network(rows, position, context, causal[None, None])[:, 0] for rows in (x, changed)]
    assert torch.equal(*hidden)


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
@torch.inference_mode()
def test_a_markov_head_biases_a_position_by_the_token_before_it(kind: Any) -> None:
    torch.manual_seed(0)
    head = MarkovHead(config(markov_rank=4, markov_kind=kind))
    before, hidden = torch.randint(20, (2, 5)), torch.randn(2, 5, 16)
    bias = head(before, hidden)
    assert bias.shape == (2, 5, 12)
    other = before.clone()
    other[:, 3] = (other[:, 3] + 1) % 20
    changed = (head(other, hidden) - bias).abs().amax(-1) > 1e-7
    # A recurrent head carries what it saw on to the positions behind.
    expected = [False, False, False, True, kind == "rnn"]
    assert changed.tolist() == [expected, expected]
