"""Adapters by name, as configurations and recipes state them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vispec.adapters.base import Adapter
from vispec.adapters.convolution import ConvolutionAdapter
from vispec.adapters.elastic import ElasticAdapter
from vispec.adapters.hidden import HiddenAdapter
from vispec.adapters.linear import LinearAdapter
from vispec.adapters.mlp import MlpAdapter
from vispec.adapters.pooling import PoolingAdapter
from vispec.adapters.pruning import PruningAdapter
from vispec.adapters.query import QueryAdapter
from vispec.adapters.resampler import ResamplerAdapter
from vispec.adapters.selector import SelectorAdapter
from vispec.adapters.stacked import StackedAdapter
from vispec.adapters.transformer import TransformerAdapter
from vispec.adapters.unified import UnifiedAdapter
from vispec.errors import SettingsError

KINDS: dict[str, type[Adapter]] = {
    "query": QueryAdapter,
    "linear": LinearAdapter,
    "mlp": MlpAdapter,
    "transformer": TransformerAdapter,
    "pooling": PoolingAdapter,
    "pruning": PruningAdapter,
    "convolution": ConvolutionAdapter,
    "resampler": ResamplerAdapter,
    "hidden": HiddenAdapter,
    "elastic": ElasticAdapter,
    "selector": SelectorAdapter,
    "stacked": StackedAdapter,
    "unified": UnifiedAdapter,
}
"""What can be asked for; the last four are made of others, their `parts`."""
RESERVED = frozenset({"hidden_size", "settings"})
"""Arguments of adapters that are no settings."""
FITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: type(value) is int and value > 0, "a count"),
    "float": (
        lambda value: type(value) in (int, float) and 0 <= value < math.inf,
        "a number, at least 0",
    ),
    "bool": (lambda value: type(value) is bool, "true or false"),
}
"""What is taken for a setting of some type, and how that is said."""


def build(settings: Mapping[str, Any] | Sequence[Mapping[str, Any]], hidden_size: int) -> Adapter:
    """An untrained adapter.

    Args:
        settings: `{"kind": "pooling", "keep": 16}`, with the arguments of that kind beside it, and
            `"rows": True` to compress what the target made of an image rather than its embeddings;
            or a list of such, which are applied one behind the other.
        hidden_size: of the target.

    Raises:
        SettingsError: for an unknown kind, or arguments that it has not or cannot do without.
    """
    if isinstance(settings, list | tuple):
        settings = {"kind": "stacked", "parts": list(settings)}
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{settings!r} describes no adapter", 'Write {"kind": …}.')
    given = dict(settings)
    kind, rows = given.pop("kind", None), given.pop("rows", False)
    if not isinstance(kind, str) or kind not in KINDS:
        raise SettingsError(f"there is no adapter '{kind}'", f"Known are {', '.join(KINDS)}.")
    wanted = inspect.signature(KINDS[kind])
    for name in RESERVED & given.keys():
        raise SettingsError(f"adapter '{kind}' has no setting '{name}'", _taken(wanted))
    arguments: dict[str, Any] = {"hidden_size": hidden_size}
    if "parts" in given:
        if not isinstance(given["parts"], list | tuple) or not given["parts"]:
            raise SettingsError(
                f"parts of adapter '{kind}' are {given['parts']!r}", "Give a list of adapters."
            )
        given["settings"] = given["parts"]
        # A core is as wide as what its targets share.
        inner = given.get("width", hidden_size)
        given["parts"] = [build(part, inner) for part in given["parts"]]
        if any(part.keeps or part.rows for part in given["parts"]):
            raise SettingsError(
                f"adapter '{kind}' has a part that stands beside an image's own tokens, or reads"
                " rows",
                "Such an adapter is used alone; rows = true belongs to the whole.",
            )
    types = {name: one.annotation for name, one in wanted.parameters.items()} | {"rows": "bool"}
    for name, value in {**given, "rows": rows}.items():
        fits, said = FITS.get(str(types.get(name)), (lambda _: True, ""))
        if not fits(value):
            raise SettingsError(f"{name} of adapter '{kind}' is {value!r}", f"Give {said}.")
    arguments = {k: v for k, v in arguments.items() if k in wanted.parameters} | given
    try:
        wanted.bind(**arguments)
        made = KINDS[kind](**arguments)
        made.rows = rows
        return made
    # torch asserts that heads divide the width.
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise SettingsError(
            f"adapter '{kind}' cannot be built of {dict(settings)}: {error}", _taken(wanted)
        ) from error


def _taken(wanted: inspect.Signature) -> str:
    """What an adapter takes."""
    options = [name for name in wanted.parameters if name not in RESERVED]
    return f"It takes {', '.join(options) or 'nothing'}."


def settings_of(adapter: Adapter) -> dict[str, Any]:
    """What `build` makes such an adapter of."""
    kind = next(name for name, known in KINDS.items() if type(adapter) is known)
    return {"kind": kind, **adapter.settings, **({"rows": True} if adapter.rows else {})}
