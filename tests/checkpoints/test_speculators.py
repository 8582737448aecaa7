"""speculators' own drafts load as its package saves them, and say what they say there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recordings import FIXTURES, cases
from vispec.checkpoints import registry
from vispec.checkpoints.export import export
from vispec.drafts import Eagle3Draft
from vispec.drafts.block import BlockNetwork

FOLDER = "speculators_draft"


def published(case: str, folder: Path) -> dict[str, Tensor]:
    """Write a recorded draft as its package saved it; returns what else was recorded."""
    found = load_file(FIXTURES / f"{case}.safetensors")
    weights = {k.removeprefix("weight."): v for k, v in found.items() if k.startswith("weight.")}
    save_file(weights, folder / "model.safetensors")
    config = json.loads((FIXTURES / f"{case}.json").read_text())["config"]
    (folder / "config.json").write_text(json.dumps(config))
    return {k: v for k, v in found.items() if not k.startswith("weight.")}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("case", cases(FOLDER, "eagle3*"))
@torch.inference_mode()
def test_eagle3_drafts_guess_the_same(case: str, tmp_path: Path) -> None:
    record = published(case, tmp_path)
    plan = registry.plan_of(tmp_path)
    assert plan.form == "speculators eagle3"
    draft = registry.read(tmp_path)
    assert isinstance(draft, Eagle3Draft)
    assert draft.embed_tokens is not None
    words, nothing = draft.embed_tokens(record["tokens"]), torch.zeros(draft.width)
    rows = draft.combine(words, draft.fuse(record["features"]), nothing)
    hidden = draft(rows[None], torch.arange(len(rows))[None])
    close(draft.logits(hidden, torch.nn.Identity())[0], record["logits"])


@pytest.mark.parity
@pytest.mark.parametrize("case", [*cases(FOLDER, "dflash*"), *cases(FOLDER, "dspark*")])
@torch.inference_mode()
def test_block_drafts_guess_the_same(case: str, tmp_path: Path) -> None:
    record = published(case, tmp_path)
    network = registry.read(tmp_path)
    assert isinstance(network, BlockNetwork)
    c, anchor = network.config, int(record["anchor"])
    position = torch.arange(anchor + c.block_size)[None]
    context = network.context(record["features"][None, :anchor], position[:, :anchor])
    block = torch.full((c.block_size,), c.mask_token_id)
    block[0] = record["tokens"][anchor]
    hidden = network(record["embedding"][block][None], position[:, anchor:], context)
    close(hidden[0], record["hidden"])
    logits = hidden @ record["head"].T
    if network.markov_head is not None:
        before = record["before"][None]
        logits = logits + network.markov_head(before, hidden)
        assert network.confidence_head is not None
        features = hidden
        if c.confidence == "hidden and token":
            features = torch.cat([hidden, network.markov_head.markov_w1(before)], -1)
        close(network.confidence_head(features)[0], record["confidence"])
    close(logits[0], record["logits"])


@pytest.mark.parametrize("case", cases(FOLDER))
def test_what_is_exported_has_the_keys_and_tensors_that_the_package_writes(
    case: str, tmp_path: Path
) -> None:
    published(case, tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    names = set(load_file(tmp_path / "model.safetensors"))
    export(registry.read(tmp_path), tmp_path / "again", "speculators", target="someone/model")
    ours = json.loads((tmp_path / "again" / "config.json").read_text())
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == names
    # Of the package's own bookkeeping, and of what its defaults are.
    optional = {
        "auto_map",
        "transformers_version",
        "sliding_window_non_causal",
        "embed_requires_grad",
    }
    assert set(theirs) - set(ours) <= optional
    assert set(ours) - set(theirs) <= {"model_type", *optional}
    for key in set(ours) & set(theirs) - {
        "architectures", "transformer_layer_config", "speculators_config", "dtype",
    }:  # fmt: skip
        assert ours[key] == theirs[key], key
    layer: dict[str, Any] = theirs["transformer_layer_config"]
    for key, value in ours["transformer_layer_config"].items():
        if key in layer:
            assert value == layer[key], key
    assert ours["speculators_config"]["algorithm"] == theirs["speculators_config"]["algorithm"]
    proposals = [config["speculators_config"]["proposal_methods"][0] for config in (ours, theirs)]
    assert set(proposals[0]) == set(proposals[1])
