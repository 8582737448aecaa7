"""The selector knows kinds by their means, and takes the part that was measured best."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from training.test_draft import sample
from vispec.adapters import SelectorAdapter, build
from vispec.drafts import EagleConfig, EagleDraft
from vispec.errors import SettingsError
from vispec.training.draft import acceptance
from vispec.training.selection import refuse_other_bodies, select

PARTS = [{"kind": "pooling", "keep": 1}, {"kind": "pooling", "keep": 3}]


def test_images_of_a_kind_go_to_its_best_part() -> None:
    made = build({"kind": "selector", "parts": PARTS, "kinds": ["cats", "signs"]}, 6)
    assert isinstance(made, SelectorAdapter)
    torch.manual_seed(0)
    cats, signs = torch.randn(2, 1, 1, 6)
    shown = [kind + 0.3 * torch.randn(20, 5, 6) for kind in (cats, signs)]
    keys = [SelectorAdapter.key(images[:10], None, None) for images in shown]
    kind = torch.tensor([0] * 10 + [1] * 10)
    made.fit(torch.cat(keys), kind, torch.tensor([[2.0, 3.0], [5.0, 1.0]]))
    for images, keep in zip(shown, (3, 1), strict=True):
        assert (made(images[10:]).counts() == keep).all()


def test_what_is_asked_tells_kinds_apart_too() -> None:
    made = build({"kind": "selector", "parts": PARTS, "kinds": ["read", "describe"]}, 6)
    assert isinstance(made, SelectorAdapter)
    torch.manual_seed(0)
    visual, asked = torch.randn(1, 5, 6).expand(2, -1, -1), torch.randn(2, 6)
    keys = SelectorAdapter.key(visual, None, asked)
    made.fit(keys, torch.tensor([0, 1]), torch.eye(2))
    assert made(visual, None, asked).counts().tolist() == [1, 3]


def test_a_kind_without_images_is_refused() -> None:
    draft = EagleDraft(EagleConfig(tiny.HIDDEN, 48, 4, 2, tiny.VOCAB)).double().eval()
    adapters = [build(part, tiny.HIDDEN).double() for part in PARTS]
    blind = sample(12, 5, 0, 3)
    assert (blind.image_index < 0).all()
    kinds = {"pictures": [sample(30, 14, 2, 1)], "words": [blind]}
    with pytest.raises(SettingsError, match="no image among the samples of 'words'"):
        select(draft, adapters, tiny.target(), kinds)


def test_a_draft_with_words_of_its_own_is_refused() -> None:
    drafts = {}
    for name, part in zip("ab", PARTS, strict=True):
        config = EagleConfig(tiny.HIDDEN, 48, 4, 2, tiny.VOCAB)
        drafts[name] = EagleDraft(config, build(part, tiny.HIDDEN))
    drafts["b"].load_state_dict(drafts["a"].state_dict())
    refuse_other_bodies(drafts)
    drafts["b"].embed_tokens = torch.nn.Embedding(tiny.VOCAB, tiny.HIDDEN)
    with pytest.raises(SettingsError, match="'b' has a token embedding of its own"):
        refuse_other_bodies(drafts)


def test_adapters_are_measured_on_every_kind_and_put_together() -> None:
    torch.manual_seed(0)
    target = tiny.target()
    draft = EagleDraft(EagleConfig(tiny.HIDDEN, 48, 4, 2, tiny.VOCAB)).double().eval()
    adapters = [build({"kind": "linear"}, tiny.HIDDEN).double(), build(PARTS[0], tiny.HIDDEN)]
    kinds = {"a": [sample(30, 14, 2, i) for i in range(3)], "b": [sample(25, 9, 1, 9)]}
    whole, measured = select(draft, adapters, target, kinds)
    assert isinstance(whole.adapter, SelectorAdapter)
    for row, samples in enumerate(kinds.values()):
        for column, adapter in enumerate(adapters):
            draft.adapter = adapter
            alone = acceptance(draft, target, samples)["acceptance_length"]
            assert abs(measured[row, column].item() - alone) < 1e-6
    assert whole.adapter.best.tolist() == measured.argmax(1).tolist()


@pytest.mark.parametrize("lengths", [[[2.0, 3.0], [5.0, 1.0]], [[3.0, 2.0], [1.0, 5.0]]])
def test_a_kind_gets_what_was_measured_best_for_it(
    lengths: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random drafts accept alike; here one serves either kind better."""
    kinds = {"many": [sample(30, 14, 2, i) for i in range(3)], "one": [sample(25, 9, 1, 9)]}

    def told(draft: Any, target: Any, samples: Any, positions: int) -> dict[str, float]:
        row, column = len(samples) == 1, draft.adapter.keep == PARTS[1]["keep"]
        return {"acceptance_length": lengths[row][column]}

    monkeypatch.setattr("vispec.training.selection.judged", told)
    draft = EagleDraft(EagleConfig(tiny.HIDDEN, 48, 4, 2, tiny.VOCAB))
    adapters = [build(part, tiny.HIDDEN) for part in PARTS]
    whole, measured = select(draft, adapters, tiny.target(), kinds)
    assert measured.tolist() == lengths
    assert isinstance(whole.adapter, SelectorAdapter)
    assert whole.adapter.best.tolist() == [row.index(max(row)) for row in lengths]
