"""Small modules that compress an image for a draft."""

from vispec.adapters.base import Adapter, Compressed
from vispec.adapters.build import KINDS, build, settings_of
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

__all__ = [
    "KINDS",
    "Adapter",
    "Compressed",
    "ConvolutionAdapter",
    "ElasticAdapter",
    "HiddenAdapter",
    "LinearAdapter",
    "MlpAdapter",
    "PoolingAdapter",
    "PruningAdapter",
    "QueryAdapter",
    "ResamplerAdapter",
    "SelectorAdapter",
    "StackedAdapter",
    "TransformerAdapter",
    "UnifiedAdapter",
    "build",
    "settings_of",
]
