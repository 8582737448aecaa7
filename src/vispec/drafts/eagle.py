"""The decoder draft of EAGLE (arXiv 2401.15077), and of ViSpec (arXiv 2509.15235) with an adapter.

A row of the draft's sequence pairs the target's feature at one position with the embedding of the
token that followed it; a decoder layer turns rows into guesses of the next features, and the
target's own LM head reads tokens from those. With an adapter, an image's rows are replaced by a
few compressed ones that enter the layer directly, and the image's global vector joins the feature
of every later row.

Draft positions are one-dimensional and count target slots, whatever the target's rotary embedding
sees; a compressed image leaves a gap in them, never a shift.

Shapes: `b` requests, `n` rows, `t` prompt positions, `r` compressed visual tokens, `d` hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vispec.adapters.base import Adapter
from vispec.decoding.cache import SlotCache
from vispec.decoding.compilation import compiled
from vispec.decoding.tree import Tree, TreeShape
from vispec.drafts.eagle_session import EagleSession
from vispec.drafts.growth import Expand, grow_dynamic
from vispec.errors import DraftMismatchError
from vispec.targets.base import Target


@dataclass(frozen=True)
class EagleConfig:
    """The draft's geometry, under the names of Hugging Face's Llama configuration."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    num_hidden_layers: int = 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    fc_bias: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class _Attention(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        d, head_dim, bias = config.hidden_size, config.head_dim, config.qkv_bias
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(d, self.heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d, self.kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d, self.kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * head_dim, d, bias=False)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: SlotCache | None,
        layer: int,
    ) -> Tensor:
        b, n, _ = x.shape
        q = _rotate(self.q_proj(x).view(b, n, self.heads, -1).transpose(1, 2), rotary)
        k = _rotate(self.k_proj(x).view(b, n, self.kv_heads, -1).transpose(1, 2), rotary)
        v = self.v_proj(x).view(b, n, self.kv_heads, -1).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        if self.kv_heads != self.heads:
            k = k.repeat_interleave(self.heads // self.kv_heads, 1)
            v = v.repeat_interleave(self.heads // self.kv_heads, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, inner, bias=False)
        self.up_proj = nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    """A Llama decoder layer; the draft's first one has no norm before its attention."""

    def __init__(self, config: EagleConfig, index: int) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self.input_layernorm = (
            nn.RMSNorm(config.hidden_size, config.rms_norm_eps) if index else None
        )
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.index = index

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: SlotCache | None,
    ) -> Tensor:
        normed = x if self.input_layernorm is None else self.input_layernorm(x)
        x = x + self.self_attn(normed, rotary, mask, cache, self.index)
        return x + self.mlp(self.post_attention_layernorm(x))


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotary
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


@dataclass(frozen=True)
class Rows:
    """A prompt as the draft reads it.

    Attributes:
        hidden: `[n, d]` inputs of the decoder layer.
        position: `[n]` draft positions, ascending, with gaps where images were.
        globals: `[d]`, the vector that serves the text after the prompt.
    """

    hidden: Tensor
    position: Tensor
    globals: Tensor


class EagleDraft(nn.Module):
    """EAGLE, or ViSpec when given an adapter.

    Args:
        config: geometry.
        adapter: compresses images; None reads every image token like text.
        embedding: the draft's own token embedding, where a checkpoint brings one that differs
            from the target's; None shares the target's.
        name: what messages call it.
    """

    def __init__(
        self,
        config: EagleConfig,
        adapter: Adapter | None = None,
        embedding: nn.Embedding | None = None,
        name: str = "eagle",
    ) -> None:
        super().__init__()
        d = config.hidden_size
        self.config, self._name, self.compiled = config, name, False
        self.fc = nn.Linear(2 * d, d, bias=config.fc_bias)
        self.layers = nn.ModuleList(_Layer(config, i) for i in range(config.num_hidden_layers))
        self.adapter = adapter
        self.img_fc: nn.Linear | None = None
        if adapter is not None and adapter.has_global:
            # ViSpec starts as EAGLE: the feature passes unchanged, the global vector is ignored.
            self.img_fc = nn.Linear(2 * d, d, bias=config.fc_bias)
            nn.init.zeros_(self.img_fc.weight)
            nn.init.eye_(self.img_fc.weight[:, :d])
            if self.img_fc.bias is not None:
                nn.init.zeros_(self.img_fc.bias)
        self.embed_tokens = embedding
        # Not a buffer: casting the module to half precision must not touch it, and it is not on
        # the meta device when the rest is.
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
        self._frequency = config.rope_theta ** (-half / config.head_dim)

    @property
    def name(self) -> str:
        return self._name

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    def check(self, target: Target) -> None:
        problems = []
        if self.config.hidden_size != target.hidden_size:
            problems.append(
                f"draft expects hidden size {self.config.hidden_size}, target has"
                f" {target.hidden_size}"
            )
        if self.config.vocab_size != target.vocab_size:
            problems.append(
                f"draft expects a vocabulary of {self.config.vocab_size}, target has"
                f" {target.vocab_size}"
            )
        if problems:
            raise DraftMismatchError(self.name, target.name, problems)

    # --- The network ------------------------------------------------------------------------

    def combine(self, embedding: Tensor, feature: Tensor, globals_: Tensor) -> Tensor:
        """A row's input: `fc(cat[embedding, img_fc(cat[feature, g])])`, all `[…, d]`."""
        if self.img_fc is not None:
            feature = self.img_fc(torch.cat([feature, globals_.expand_as(feature)], -1))
        return self.fc(torch.cat([embedding, feature], -1))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        mask: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> Tensor:
        """Run the decoder layers.

        Args:
            x: `[b, n, d]` combined rows.
            position: `[b, n]` draft positions.
            mask: additive `[b, 1, n, keys]`; None is causal.
            cache: where keys are written, its window already set; None attends to `x` alone.

        Returns:
            `[b, n, d]` guessed features.
        """
        if self._frequency.device != position.device:
            self._frequency = self._frequency.to(position.device)
        angle = position[..., None].float() * self._frequency
        angle = torch.cat([angle, angle], -1)[:, None]
        rotary = (angle.cos().to(x.dtype), angle.sin().to(x.dtype))
        for layer in self.layers:
            x = layer(x, rotary, mask, cache)
        return x

    def read(
        self, embeddings: Tensor, features: Tensor, image_index: Tensor, next_embedding: Tensor
    ) -> Rows:
        """Lay out a prompt's rows, images compressed.

        Args:
            embeddings: `[t, d]` the decoder's inputs, images in them.
            features: `[t, d]` the target's last hidden states.
            image_index: `[t]`, the image a position belongs to, -1 for text.
            next_embedding: `[d]`, of the token behind the prompt.
        """
        # Row t pairs the feature at t with the token at t + 1.
        shifted = torch.cat([embeddings[1:], next_embedding[None]])
        image = torch.cat([image_index[1:], image_index.new_full((1,), -1)])
        t = len(shifted)
        position = torch.arange(t, device=shifted.device)
        g = shifted.new_zeros(shifted.shape[1])
        if self.adapter is None:
            return Rows(self.combine(shifted, features, g), position, g)
        parts, places, start = [], [], 0
        for index in range(int(image.max()) + 1 if t else 0):
            of_image = (image == index).nonzero()[:, 0]
            if not len(of_image):
                continue
            end = int(of_image[-1]) + 1
            text = start + (image[start:end] < 0).nonzero()[:, 0]
            compressed = self.adapter(shifted[of_image][None])
            count = compressed.tokens.shape[1]
            parts += [self.combine(shifted[text], features[text], g), compressed.tokens[0]]
            places += [text, torch.arange(end - count, end, device=text.device).clamp(min=0)]
            if compressed.globals is not None:
                g = compressed.globals[0]
            start = end
        parts.append(self.combine(shifted[start:], features[start:], g))
        places.append(position[start:])
        return Rows(torch.cat(parts), torch.cat(places), g)

    # --- Drafting -----------------------------------------------------------------------------

    def compile_passes(self) -> None:
        """Compile growing dynamic trees and reading what was accepted."""
        if not self.compiled:
            self.compiled = True
            self.grow = compiled(self.grow)  # type: ignore[method-assign]
            self.follow = compiled(self.follow)  # type: ignore[method-assign]

    def grow(
        self,
        roots: Tensor,
        first: Tensor,
        globals_: Tensor,
        position: Tensor,
        shape: TreeShape,
        embedding: nn.Embedding,
        head: nn.Linear,
        cache: SlotCache,
    ) -> Tree:
        """Grow a dynamic tree, its keys in the cache's window.

        Args:
            roots: `[b]` tokens.
            first: `[b, d]` guessed features at the roots.
            globals_: `[b, d]` of the last image.
            position: `[b]` draft positions of the roots.
            shape: the budget.
            embedding: of the draft's tokens.
            head: reads logits from features.
            cache: the draft's own.
        """
        expand = self.expander(first, globals_, position, embedding, head, cache)
        return grow_dynamic(roots, head(first), expand, shape)

    def expander(
        self,
        first: Tensor,
        globals_: Tensor,
        position: Tensor,
        embedding: nn.Embedding,
        head: nn.Linear,
        cache: SlotCache,
    ) -> Expand:
        """What continues a tree level by level; arguments as in `grow`."""
        hidden, level = first[:, None], 0

        def expand(token: Tensor, origin: Tensor, seen: Tensor) -> Tensor:
            nonlocal hidden, level
            w, m = seen.shape[1:]
            feature = hidden.gather(1, origin[..., None].expand(-1, -1, hidden.shape[-1]))
            x = self.combine(embedding(token), feature, globals_[:, None])
            cache.step(w, m - w)
            mask = cache.attention_mask(seen, x.dtype)
            hidden = self(x, (position + level)[:, None].expand(-1, w), mask, cache)
            level += 1
            return head(hidden)

        return expand

    def follow(
        self,
        tokens: Tensor,
        features: Tensor,
        counts: Tensor,
        globals_: Tensor,
        position: Tensor,
        embedding: nn.Embedding,
        cache: SlotCache,
    ) -> Tensor:
        """Read accepted tokens, and guess the feature behind the last of each request.

        Args:
            tokens: `[b, n]`, padded on the right.
            features: `[b, n, d]` of the target, at the position before each.
            counts: `[b]` tokens that are real.
            globals_: `[b, d]` of the last image.
            position: `[b]` draft position of each first token.
            embedding: of the tokens.
            cache: the draft's own, its window set.

        Returns:
            `[b, d]`.
        """
        b, n = tokens.shape
        x = self.combine(embedding(tokens), features, globals_[:, None])
        place = torch.arange(n, device=tokens.device)
        causal = (place <= place[:, None]).expand(b, -1, -1)
        mask = cache.attention_mask(causal, x.dtype)
        hidden = self(x, position[:, None] + place, mask, cache)
        return hidden[torch.arange(b, device=tokens.device), counts - 1]

    def session(self, target: Target, slots: int, capacity: int) -> EagleSession:
        return EagleSession(self, target, slots, capacity)
