"""Smaller forms of drafts are close to the whole ones, are kept and loaded, and change no text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import talking
import vispec
from drafts.test_hybrid import medusa
from drafts.test_reading import NETWORKS, draft
from vispec.checkpoints import registry
from vispec.checkpoints.export import export
from vispec.checkpoints.summary import mismatches, summarise
from vispec.drafts.compression import Int8Linear, LowRankLinear, compress, compression_of
from vispec.errors import CheckpointError, SettingsError


@pytest.mark.parametrize("bias", [False, True])
def test_int8_is_the_nearest_of_255_steps(bias: bool) -> None:
    torch.manual_seed(0)
    whole, x = nn.Linear(20, 7, bias=bias), torch.randn(5, 20)
    small = Int8Linear.of(whole)
    step = whole.weight.abs().amax(1, keepdim=True) / 127
    kept = small.weight.float() * small.scale
    assert ((kept - whole.weight).abs() <= step / 2 + 1e-7).all()
    expected = x @ kept.T + (whole.bias if bias else 0)
    torch.testing.assert_close(small(x), expected)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_is_the_closest_of_that_rank(rank: int) -> None:
    torch.manual_seed(0)
    whole, x = nn.Linear(20, 7).double(), torch.randn(5, 20).double()
    small = LowRankLinear.of(whole, rank)
    kept = small.up.weight @ small.down.weight
    rest = torch.linalg.svdvals(whole.weight)[rank:]
    torch.testing.assert_close((kept - whole.weight).norm(), rest.norm(), atol=1e-9, rtol=0)
    torch.testing.assert_close(small(x), x @ kept.T + whole.bias)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("adapter", ["none", "query", "elastic", "transformer"])
@pytest.mark.parametrize("form", [("int8", 0), ("low_rank", 6)])
def test_a_compressed_draft_is_kept_loaded_and_right(
    network: str, adapter: str, form: tuple[str, int], tmp_path: Path
) -> None:
    small = compress(draft(network, adapter), *form)
    vispec.save_pretrained(small, tmp_path / "draft", vispec.Card(target="x"))
    found = summarise(tmp_path / "draft")
    assert (found.kind, found.problems) == ("draft", [])
    again = registry.read(tmp_path / "draft")
    assert compression_of(again) == compression_of(small)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in small.state_dict().items())
    target = talking.save(tmp_path / "target")
    assert mismatches(tmp_path / "draft", target) == []
    engine = vispec.load(target, tmp_path / "draft", dtype=torch.float64)
    asked = {"images": [talking.picture(0)], "max_new_tokens": 12, "temperature": 0}
    plain = engine.generate("the cat", speculate=False, **asked)
    assert engine.generate("the cat", **asked).token_ids == plain.token_ids


def test_medusas_heads_compress_too(tmp_path: Path) -> None:
    small = compress(medusa(), "low_rank", 4)
    vispec.save_pretrained(small, tmp_path)
    again = registry.read(tmp_path)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in small.state_dict().items())


def test_the_whole_draft_stays_as_it_was() -> None:
    whole = draft("eagle", "query")
    before = {k: v.clone() for k, v in whole.state_dict().items()}
    compress(whole, "int8")
    assert compression_of(whole) is None
    assert all(torch.equal(whole.state_dict()[k], v) for k, v in before.items())


def test_it_is_smaller() -> None:
    def size(network: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in network.parameters())

    whole = draft("eagle", "query").float()
    assert size(compress(whole, "int8")) < 0.35 * size(whole)
    assert size(compress(whole, "low_rank", 4)) < 0.5 * size(whole)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="no matrix of the draft is smaller at rank 999"):
        compress(medusa(), "low_rank", 999)


@pytest.mark.parametrize(("form", "rank"), [("int4", 0), ("low_rank", 0), ("low_rank", -3)])
def test_a_form_that_is_none_is_named(form: str, rank: int) -> None:
    with pytest.raises(SettingsError, match=form if form == "int4" else "rank"):
        compress(draft("eagle", "none"), form, rank)


def test_no_other_format_takes_compressed_matrices(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="compressed matrices"):
        export(compress(draft("eagle", "none"), "int8"), tmp_path, "eagle")
