"""Texts laid out together are laid out as each alone, whatever the adapter and the draft."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import talking
import tiny
import vispec
from vispec.adapters import SelectorAdapter, build
from vispec.decoding.engine import Request
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import TreeShape
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.drafts.reading import Seen
from vispec.drafts.sequential import SequentialDraft
from vispec.errors import SettingsError

D = tiny.HIDDEN
POOLING = {"kind": "pooling", "keep": 3}
QUERY = {"kind": "query", "heads": 4, "queries": 3}
ADAPTERS: dict[str, Any] = {
    "none": None,
    "query": QUERY,
    "query of other heads": {"kind": "query", "heads": 2, "queries": 3},
    "query beside": {**QUERY, "beside": True},
    "one query beside": {**QUERY, "queries": 1, "beside": True},
    "query of rows": {**QUERY, "rows": True},
    "pooling of rows": {**POOLING, "rows": True},
    "hidden": {"kind": "hidden"},
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "inner": 8},
    "transformer": {"kind": "transformer", "heads": 2, "inner": 8},
    "pooling": POOLING,
    "pruning": {"kind": "pruning", "keep": 3},
    "convolution": {"kind": "convolution", "stride": 2},
    "resampler": {"kind": "resampler", "heads": 2, "queries": 2, "inner": 8},
    "stacked": [POOLING, {"kind": "mlp", "inner": 8}],
    "elastic": {"kind": "elastic", "parts": [POOLING, {"kind": "hidden"}, QUERY]},
    "selector": {"kind": "selector", "kinds": ["a", "b"], "parts": [POOLING, {"kind": "hidden"}]},
    "unified": {"kind": "unified", "width": 8, "parts": [QUERY]},
}
NETWORKS = ("eagle", "eagle fused", "eagle3")


def draft(network: str, adapter: str) -> SequentialDraft:
    torch.manual_seed(0)
    settings = ADAPTERS[adapter]
    made = build(settings, D) if settings is not None else None
    layers = (0, 1, 2) if network == "eagle fused" else ()
    config = EagleConfig(D, 48, 4, 2, tiny.VOCAB, aux_layers=layers)
    whole: SequentialDraft = EagleDraft(config, made)
    if network == "eagle3":
        shape = Eagle3Config(D, 48, 4, 2, tiny.VOCAB, tiny.VOCAB, aux_layers=(0, 1, 2))
        whole = Eagle3Draft(shape, adapter=made)
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if isinstance(made, SelectorAdapter):
        made.means.normal_()
        made.best.copy_(torch.tensor([1, 0]))
    return whole.double().eval().requires_grad_(False)


def seen(draw: random.Random, width: int) -> Seen:
    """A text with images of random sizes, some of them in several parts."""
    index = [-1] * draw.randint(1, 3)
    for image in range(draw.randint(0, 3)):
        for _ in range(draw.choice((1, 1, 2))):
            index += [image] * draw.randint(4, 9) + [-1] * draw.randint(0, 2)
    index += [-1] * draw.randint(2, 5)
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    words = torch.randn(len(index), D, generator=generator).double()
    features = torch.randn(len(index) - 1, width, generator=generator).double()
    return Seen(words, features, torch.tensor(index), len(index) - draw.randint(1, 2))


def fits(network: str, adapter: str) -> bool:
    """An adapter of rows is not for EAGLE-3, whose rows are wider."""
    return not (network == "eagle3" and adapter.endswith("of rows"))


PAIRS = [(n, a) for n in NETWORKS for a in ADAPTERS if fits(n, a)]


@pytest.mark.parametrize(("network", "adapter"), PAIRS)
def test_texts_together_are_as_each_alone(network: str, adapter: str) -> None:
    made = draft(network, adapter)
    width = D if network == "eagle" else 3 * D
    for seed in range(10):
        draw = random.Random(seed)
        texts = [seen(draw, width) for _ in range(draw.randint(1, 5))]
        for text, rows in zip(texts, made.read(texts).rows, strict=True):
            (alone,) = made.read([text]).rows
            assert torch.equal(rows.position, alone.position)
            torch.testing.assert_close(rows.hidden, alone.hidden)
            torch.testing.assert_close(rows.globals, alone.globals)


@pytest.mark.parametrize("adapter", [name for name in ADAPTERS if name not in ("none", "query")])
def test_images_are_what_the_adapter_makes_of_them(adapter: str) -> None:
    """Rows by hand, one image at a time; the query adapter's are laid out in test_eagle_rows."""
    made = draft("eagle", adapter)
    assert made.adapter is not None
    for seed in range(10):
        text = seen(random.Random(seed), D)
        index, t = text.image_index.tolist()[1:], len(text.features)
        asked = text.embeddings[: text.prompt][text.image_index[: text.prompt] < 0].mean(0)
        expected: dict[tuple[int, int], Tensor] = {}
        g = torch.zeros(D).double()
        for p in range(t):
            if index[p] < 0 or made.adapter.keeps:
                feature = text.features[p]
                if made.img_fc is not None:
                    feature = made.img_fc(torch.cat([feature, g]))
                expected[p, 0] = made.fc(torch.cat([text.embeddings[p + 1], feature]))
            if index[p] >= 0 and index[p] not in index[p + 1 :]:
                own = [i for i in range(t) if index[i] == index[p]]
                visual = torch.stack([text.embeddings[i + 1] for i in own])
                if made.adapter.rows:
                    # What a row without a global vector is.
                    feature = torch.stack([text.features[i] for i in own])
                    if made.img_fc is not None:
                        feature = made.img_fc(torch.cat([feature, torch.zeros_like(feature)], -1))
                    visual = made.fc(torch.cat([visual, feature], -1))
                compressed = made.adapter(visual[None], None, asked[None])
                expected |= {(p, 1 + r): row for r, row in enumerate(compressed.tokens[0])}
                g = compressed.globals[0] if compressed.globals is not None else g
        (rows,) = made.read([text]).rows
        assert rows.hidden.shape[0] == len(rows.position)
        # Between an image's own parts rows of text and tokens share places; sorted, all are there.
        found, wanted = rows.hidden, torch.stack(list(expected.values()))
        assert found.shape == wanted.shape
        torch.testing.assert_close(found.sum(1).sort().values, wanted.sum(1).sort().values)


@pytest.mark.parametrize(("network", "adapter"), PAIRS)
def test_the_targets_own_text_whatever_the_adapter(network: str, adapter: str) -> None:
    """Requests with one, two and no images in one batch."""
    target = talking.target()
    engine = vispec.load(target, draft(network, adapter), tree=TreeShape(8, 3, 3), max_batch=3)
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=12, temperature=temperature, seed=3)
        asked = [
            Request("what is it ?", [talking.picture(i) for i in range(count)], sampling)
            for count in (1, 2, 0, 1)
        ]
        spoken = engine.generate(asked)
        plain = [engine.generate([one], speculate=False)[0].token_ids for one in asked]
        assert [result.token_ids for result in spoken] == plain


@pytest.mark.parametrize("queries", [1, 40])
def test_an_adapter_may_make_more_tokens_of_an_image_than_it_has(queries: int) -> None:
    """None of them is lost, and the draft's cache has room for all of them."""
    target = talking.target()
    torch.manual_seed(0)
    config = EagleConfig(D, 48, 4, 2, tiny.VOCAB)
    for settings in (
        {**QUERY, "queries": queries, "beside": True},
        {"kind": "resampler", "heads": 2, "queries": queries, "inner": 8},
    ):
        made = EagleDraft(config, build(settings, D)).double().eval().requires_grad_(False)
        engine = vispec.load(target, made, tree=TreeShape(8, 3, 3), max_batch=2)
        sampling = Sampling(max_new_tokens=12, temperature=0.0)
        asked = [Request("it", [talking.picture(i)] * (1 + i), sampling) for i in range(4)]
        spoken = [one.token_ids for one in engine.generate(asked)]
        assert spoken == [one.token_ids for one in engine.generate(asked, speculate=False)]


def test_an_adapter_of_rows_is_not_for_eagle3() -> None:
    with pytest.raises(SettingsError, match="rows are twice as wide"):
        draft("eagle3", "pooling of rows")
