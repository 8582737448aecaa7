"""The networks of block drafts, which guess a whole block of tokens in one pass.

DFlash (z-lab, 2025) lays the last accepted token and mask tokens behind it side by side; in every
layer they see each other, both ways, and keys and values made of the target's features, which are
fused once for all layers. DSpark adds a bias of the logits by the token before (a low-rank Markov
head), and a guess of how far a block will be accepted.

Shapes: `b` requests, `t` context positions, `n` rows of the block, `d` hidden size, `k` layers
read, `r` rank of the Markov head, `V'` draft vocabulary, `V` the target's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vispec.drafts.base import shared_misfits
from vispec.drafts.layers import Attention, Mlp, Rotary, Rotation
from vispec.errors import DraftMismatchError
from vispec.targets.base import Target

MarkovKind = Literal["vanilla", "gated", "rnn"]


@dataclass(frozen=True)
class BlockConfig:
    """The draft's geometry, under the names of the published configurations.

    Attributes:
        max_position_embeddings: 0 where that is not stated.
        block_size: rows of a block, the last accepted token's included.
        mask_token_id: what stands at rows that are to be guessed.
        aux_layers: whose inputs are read; the number of layers means the last one's output.
        target_hidden_size: of one layer; the draft's own where it is 0.
        target_layers: layers of the target it was trained for; 0 where that is not stated.
        sample_from_anchor: the last accepted token's own row guesses as well.
        markov_rank: `r`; 0 where there is no Markov head.
        confidence: what its confidence head reads; None where there is none.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    draft_vocab_size: int
    block_size: int
    mask_token_id: int
    aux_layers: tuple[int, ...]
    num_hidden_layers: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: Mapping[str, Any] | None = None
    max_position_embeddings: int = 0
    head_dim: int = 0
    target_hidden_size: int = 0
    target_layers: int = 0
    attention_bias: bool = False
    output_bias: bool = False
    own_head: bool = False
    sample_from_anchor: bool = False
    markov_rank: int = 0
    markov_kind: MarkovKind = "vanilla"
    confidence: Literal["hidden", "hidden and token"] | None = None

    def __post_init__(self) -> None:
        if not self.head_dim:
            head_dim = self.hidden_size // self.num_attention_heads
            object.__setattr__(self, "head_dim", head_dim)
        if not self.target_hidden_size:
            object.__setattr__(self, "target_hidden_size", self.hidden_size)


class _Layer(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.self_attn = Attention(
            d,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            bias=c.attention_bias,
            output_bias=c.output_bias,
            norm_eps=c.rms_norm_eps,
        )
        self.mlp = Mlp(d, c.intermediate_size)
        self.input_layernorm = nn.RMSNorm(d, c.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(d, c.rms_norm_eps)

    def key_value(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Of context, which has no norm of the layer's own."""
        return self.self_attn.key_value(x, rotation)

    def forward(
        self, x: Tensor, context: tuple[Tensor, Tensor], rotation: Rotation, mask: Tensor | None
    ) -> Tensor:
        normed = self.input_layernorm(x)
        key, value = self.self_attn.key_value(normed, rotation)
        keys, values = torch.cat([context[0], key], 2), torch.cat([context[1], value], 2)
        query = self.self_attn.query(normed, rotation)
        x = x + self.self_attn.attend(query, keys, values, mask, causal=False)
        return x + self.mlp(self.post_attention_layernorm(x))


class MarkovHead(nn.Module):
    """DSpark's bias of a position's logits by the token before it."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        rank, d = config.markov_rank, config.hidden_size
        self.kind = config.markov_kind
        self.markov_w1 = nn.Embedding(config.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, config.draft_vocab_size, bias=False)
        self.gate_proj = nn.Linear(d + rank, rank) if self.kind == "gated" else None
        self.joint_proj = nn.Linear(2 * rank + d, 3 * rank) if self.kind == "rnn" else None

    def forward(self, before: Tensor, hidden: Tensor) -> Tensor:
        """`[b, n, V']` for the tokens before each position `[b, n]`, and its hidden state."""
        said = self.markov_w1(before)
        if self.gate_proj is not None:
            said = said * self.gate_proj(torch.cat([hidden, said], -1)).sigmoid()
        if self.joint_proj is not None:
            state, outputs = torch.zeros_like(said[:, 0]), []
            for place in range(said.shape[1]):
                joint = torch.cat([state, said[:, place], hidden[:, place]], -1)
                gate, candidate, output = self.joint_proj(joint).chunk(3, -1)
                gate = gate.sigmoid()
                state = gate * state + (1 - gate) * candidate.tanh()
                outputs.append(output.tanh())
            said = torch.stack(outputs, 1)
        return self.markov_w2(said)


class ConfidenceHead(nn.Module):
    """DSpark's guess whether a position will be accepted, as a logit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.proj(features)[..., 0]


class BlockNetwork(nn.Module):
    """DFlash's network, with DSpark's heads where the configuration has them.

    Args:
        config: geometry.
        embedding: the draft's own token embedding; None shares the target's.
        name: what messages call it.
    """

    token_map: Tensor | None

    def __init__(
        self, config: BlockConfig, embedding: nn.Embedding | None = None, name: str = "block"
    ) -> None:
        super().__init__()
        c, d = config, config.hidden_size
        self.config, self.name, self.embed_tokens = config, name, embedding
        self.fc = nn.Linear(len(c.aux_layers) * c.target_hidden_size, d, bias=False)
        self.hidden_norm = nn.RMSNorm(d, c.rms_norm_eps)
        self.layers = nn.ModuleList(_Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(d, c.rms_norm_eps)
        self.lm_head = nn.Linear(d, c.draft_vocab_size, bias=False) if c.own_head else None
        self.markov_head = MarkovHead(c) if c.markov_rank else None
        self.confidence_head: ConfidenceHead | None = None
        if c.confidence is not None:
            more = c.markov_rank if c.confidence == "hidden and token" else 0
            self.confidence_head = ConfidenceHead(d + more)
        self.register_buffer("token_map", None, persistent=False)
        self._rotary = Rotary(c.head_dim, c.rope_theta, c.rope_scaling, c.max_position_embeddings)

    def feature_layers(self, target: Target) -> Sequence[int]:
        return self.config.aux_layers

    def context(self, features: Tensor, position: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values `[b, kv_heads, t, head_dim]` of every layer.

        Args:
            features: `[b, t, k d]` of the target.
            position: `[b, t]` of them.
        """
        fused = self.hidden_norm(self.fc(features))
        rotation = self._rotary(position, fused.dtype)
        return [layer.key_value(fused, rotation) for layer in self.layers]  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        context: Sequence[tuple[Tensor, Tensor]],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `[b, n, d]` of a block.

        Args:
            x: `[b, n, d]` embeddings of the last accepted token and of mask tokens.
            position: `[b, n]` of them.
            context: of `context`.
            mask: additive `[b, 1, n, t + n]`; None shows everything to every row.
        """
        rotation = self._rotary(position, x.dtype)
        for layer, past in zip(self.layers, context, strict=True):
            x = layer(x, past, rotation, mask)
        return self.norm(x)

    def check(self, target: Target) -> None:
        """Raise `DraftMismatchError`, listing everything that does not fit `target`."""
        c, count = self.config, target.text_config.num_hidden_layers
        problems = shared_misfits(self, target)
        if c.target_hidden_size != target.hidden_size:
            problems.append(
                f"draft reads features of size {c.target_hidden_size}, target's have"
                f" {target.hidden_size}"
            )
        if c.vocab_size != target.vocab_size:
            problems.append(
                f"draft expects a vocabulary of {c.vocab_size}, target has {target.vocab_size}"
            )
        if c.target_layers and c.target_layers != count:
            problems.append(
                f"draft was trained for a target of {c.target_layers} layers, this one has {count}"
            )
        beyond = [i for i in c.aux_layers if not 0 <= i <= count]
        if beyond:
            problems.append(f"draft reads layers {beyond}, target has layers 0 to {count - 1}")
        if problems:
            raise DraftMismatchError(self.name, target.name, problems)
