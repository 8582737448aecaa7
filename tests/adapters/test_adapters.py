"""What all adapters have in common: batches, padding, gradients, and their settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from vispec.adapters import KINDS, Adapter, Compressed, SelectorAdapter, build, settings_of
from vispec.errors import SettingsError

D = 12
QUERY = {"kind": "query", "heads": 3, "queries": 3}
POOLING = {"kind": "pooling", "keep": 4}
EXAMPLES: dict[str, Any] = {
    "query": QUERY,
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "inner": 8},
    "mlp of three": {"kind": "mlp", "inner": 8, "layers": 3, "reconstruct": 0.5},
    "transformer": {"kind": "transformer", "heads": 3, "inner": 16, "layers": 2},
    "pooling": POOLING,
    "pruning": {"kind": "pruning", "keep": 4},
    "convolution": {"kind": "convolution", "stride": 3},
    "resampler": {"kind": "resampler", "heads": 3, "queries": 2, "inner": 16, "layers": 2},
    "hidden": {"kind": "hidden"},
    "stacked": [POOLING, {"kind": "mlp", "inner": 8}],
    "query, the global one alone": QUERY | {"queries": 1},
    "query behind others": [{"kind": "transformer", "heads": 2, "inner": 8}, QUERY],
    "elastic": {"kind": "elastic", "parts": [POOLING, {"kind": "hidden"}, QUERY]},
    "elastic before another": [
        {"kind": "elastic", "parts": [POOLING, {"kind": "pruning", "keep": 5}]},
        {"kind": "mlp", "inner": 8, "reconstruct": 0.5},
    ],
    "elastic that may hide, behind another": [
        POOLING,
        {"kind": "elastic", "parts": [{"kind": "hidden"}, QUERY]},
    ],
    "unified": {"kind": "unified", "width": 8, "parts": [{"kind": "pruning", "keep": 3}]},
    "selector": {"kind": "selector", "parts": [POOLING, QUERY], "kinds": ["one", "other"]},
}


def make(name: str, seed: int = 0) -> Adapter:
    torch.manual_seed(seed)
    made = build(EXAMPLES[name], D).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if isinstance(made, SelectorAdapter):
        kind = torch.tensor([0, 0, 1, 1, 1])
        made.fit(torch.randn(5, 2 * D).double(), kind, torch.eye(2))
    return made.eval()


def images(seed: int, count: int = 4) -> tuple[list[Tensor], Tensor]:
    """Images of different sizes, and what is asked of each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 15, (count,), generator=generator).tolist()
    shown = [torch.randn(n, D, generator=generator).double() for n in sizes]
    return shown, torch.randn(count, D, generator=generator).double()


def batch(shown: list[Tensor], filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Padded behind, and the mask."""
    visual = torch.nn.utils.rnn.pad_sequence(shown, batch_first=True, padding_value=filler)
    sizes = torch.tensor([len(image) for image in shown])
    return visual, torch.arange(visual.shape[1]) < sizes[:, None]


def own(found: Compressed, row: int) -> Tensor:
    """An image's real tokens, which come first."""
    count = int(found.counts()[row])
    if found.mask is not None:
        assert found.mask[row, :count].all()
    return found.tokens[row, :count]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_image_is_the_same_in_any_batch(name: str) -> None:
    made = make(name)
    for seed in range(20):
        shown, asked = images(seed)
        together = made(*batch(shown), asked)
        padded = made(*batch(shown, filler=1e3), asked)
        for row, image in enumerate(shown):
            alone = made(image[None], None, asked[row : row + 1])
            assert int(alone.counts()[0]) == alone.tokens.shape[1]
            torch.testing.assert_close(own(together, row), alone.tokens[0])
            torch.testing.assert_close(own(padded, row), alone.tokens[0])
            assert (together.globals is not None) == made.has_global
            if made.has_global:
                torch.testing.assert_close(together.globals[row], alone.globals[0])
                torch.testing.assert_close(padded.globals[row], alone.globals[0])


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_weight_learns(name: str) -> None:
    made = make(name).train()
    shown, asked = images(3, 24)
    found = made(*batch(shown), asked)
    real = torch.cat([own(found, row) for row in range(len(shown))])
    total = (real**2).sum()
    for extra in (found.globals, found.loss):
        if extra is not None:
            total = total + (extra**2).sum()
    if not list(made.parameters()):
        return
    total.backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 1e-9, key


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_make_it_again(name: str) -> None:
    made = make(name)
    again = build(json.loads(json.dumps(settings_of(made))), D).double().eval()
    again.load_state_dict(made.state_dict())
    shown, asked = images(5)
    one, other = made(*batch(shown), asked), again(*batch(shown), asked)
    torch.testing.assert_close(one.tokens, other.tokens, rtol=0, atol=0)
    assert again.has_global == made.has_global


def test_every_kind_is_tried_here() -> None:
    assert {settings_of(make(name))["kind"] for name in EXAMPLES} == set(KINDS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "quantum"}, ["'quantum'", "pooling"]),
        ({"keep": 3}, ["None", "pooling"]),
        ({"kind": "pooling"}, ["keep"]),
        ({"kind": "pooling", "keep": 3, "keeep": 4}, ["keeep", "It takes keep"]),
        ({"kind": "mlp", "inner": 4, "layers": 1}, ["at least 2", "linear"]),
        ([{"kind": "pooling", "keep": 3}, {"kind": "hiden"}], ["'hiden'"]),
        ({"kind": "query", "heads": 0}, ["query"]),
        ({"kind": "query", "heads": 5}, ["5 heads do not divide a width of 12"]),
        ({"kind": "linear", "hidden_size": 3}, ["hidden_size", "takes nothing"]),
        ({"kind": "pooling", "keep": 3, "settings": {}}, ["settings", "takes keep"]),
        ([{"kind": "hidden"}, QUERY], ["may leave nothing"]),
        ([QUERY | {"queries": 1}, {"kind": "linear"}], ["may leave nothing"]),
        ([{"kind": "elastic", "parts": [POOLING, {"kind": "hidden"}]}, QUERY], ["leave nothing"]),
        (
            [{"kind": "unified", "width": 8, "parts": [{"kind": "hidden"}]}, {"kind": "linear"}],
            ["may leave nothing"],
        ),
    ],
)
def test_what_cannot_be_built_is_named(settings: Any, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        build(settings, D)
    assert all(word in str(error.value) for word in words)
