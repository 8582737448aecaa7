"""Every way of decoding that is compared, as a function that answers and is timed.

Timed from the question and the decoded picture to the text: chat template, image processor, vision
tower and prefill included.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CompileConfig, StaticCache

from vispec.adapters.hidden import HiddenAdapter
from vispec.decoding.engine import Engine, Request
from vispec.decoding.planner import CHAINS, TREES, fastest_tree
from vispec.decoding.sampling import Sampling
from vispec.decoding.tree import TreeShape
from vispec.drafts.sequential import SequentialDraft
from vispec.evaluation.items import Item
from vispec.loading_drafts import load_draft
from vispec.targets import Target, wrap

MAX_NEW_TOKENS = 128
TEMPERATURES = (0.0, 1.0)
BLIND = "eagle-text-blind"
"""A draft that learnt from text, kept from images that it would make nothing of."""


@dataclass(frozen=True)
class Answer:
    """One timed answer.

    Attributes:
        passes: of the target behind the prefill.
        stats: our loop's own, empty for Hugging Face's.
    """

    seconds: float
    token_ids: list[int]
    text: str
    passes: int
    stats: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Item, float, int], Answer]
"""`(item, temperature, seed) -> Answer`."""


def huggingface(
    target: Target, options: Callable[[], dict[str, Any]] = dict, *, count: bool = False
) -> Method:
    """The model's own `generate`; `count` its passes, where they are fewer than its tokens."""

    def run(item: Item, temperature: float, seed: int) -> Answer:
        torch.manual_seed(seed)
        calls: list[None] = []
        hook = target.head.register_forward_hook(lambda *_: calls.append(None)) if count else None
        begun = time.perf_counter()
        prompt = target.encode(item.question, [item.image])
        # Of all tokens, as ours; by itself `generate` samples among the 50 likeliest.
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0}
        sampling = sampled if temperature else {"do_sample": False}
        with torch.inference_mode():
            out = target.model.generate(
                **prompt.inputs,
                **sampling,
                max_new_tokens=MAX_NEW_TOKENS,
                **options(),
            )
        ids = out[0, len(prompt) :].tolist()
        text = target.tokenizer.decode(ids, skip_special_tokens=True)
        seconds = time.perf_counter() - begun
        if hook is not None:
            hook.remove()
        return Answer(seconds, ids, text, (len(calls) if count else len(ids)) - 1)

    return run


def static_cache(target: Target, items: Sequence[Item]) -> Callable[[], dict[str, Any]]:
    """Options of `generate` with one static cache, made once and emptied before every answer."""
    longest = max(len(target.encode(item.question, [item.image])) for item in items)
    cache = StaticCache(config=target.model.config, max_cache_len=longest + MAX_NEW_TOKENS)
    compiled = CompileConfig(mode="default", fullgraph=False, dynamic=None)
    # `generate` compiles on accelerators alone unless told so.
    compiled._compile_all_devices = True

    def options() -> dict[str, Any]:
        cache.reset()
        return {"past_key_values": cache, "compile_config": compiled}

    return options


def request(item: Item, temperature: float, seed: int) -> Request:
    """An item as our engine takes it."""
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed)
    return Request(item.question, [item.image], sampling)


def ours(engine: Engine, speculate: bool = True) -> Method:
    """Our loop."""

    def run(item: Item, temperature: float, seed: int) -> Answer:
        begun = time.perf_counter()
        result = engine.generate([request(item, temperature, seed)], speculate=speculate)[0]
        seconds = time.perf_counter() - begun
        stats, tree = result.stats, engine.tree
        told = stats.as_dict() | ({"size": tree.size, "depth": tree.depth} if speculate else {})
        return Answer(seconds, result.token_ids, result.text, stats.target_passes, told)

    return run


def build(
    target: Target,
    drafts: dict[str, str],
    items: Sequence[Item],
    others: Sequence[Item],
    chosen: Path,
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Every method, and the trees that were chosen on `others`.

    Args:
        drafts: folders of `vispec`, `eagle3` and `eagle-text`.
        chosen: file of what was chosen; what is in it is not chosen again.

    Returns:
        methods by name; and `trees`, a method's, and `timed`, the tokens a second of all that it
        was chosen from, by size, depth and width.
    """
    compiled = wrap(target.model, target.processor)
    sources = {
        "vispec-chain": (drafts["vispec"], CHAINS),
        "eagle3-chain": (drafts["eagle3"], CHAINS),
        "eagle-text": (drafts["eagle-text"], TREES),
        BLIND: (drafts["eagle-text"], TREES),
        "eagle3": (drafts["eagle3"], TREES),
        "vispec": (drafts["vispec"], TREES),
    }
    methods = {
        "generate": huggingface(target),
        "generate-static": huggingface(target, static_cache(target, items)),
        "generate-lookup": huggingface(
            target, lambda: {"prompt_lookup_num_tokens": 10}, count=True
        ),
        "plain": ours(Engine(target), speculate=False),
        "plain-compiled": ours(Engine(compiled, compile=True), speculate=False),
    }
    draft, advice = load_draft(drafts["vispec"], target)
    advice = advice or TreeShape()
    methods["vispec-uncompiled"] = ours(Engine(target, draft, tree=advice))
    draft, _ = load_draft(drafts["vispec"], compiled)
    methods["vispec-advised"] = ours(_compiled_engine(compiled, draft, advice))
    choice = json.loads(chosen.read_text()) if chosen.exists() else {"trees": {}, "timed": {}}
    trees, timed = choice["trees"], choice["timed"]
    trees |= dict.fromkeys(("vispec-uncompiled", "vispec-advised"), asdict(advice))
    for name, (folder, candidates) in sources.items():
        draft, _ = load_draft(folder, compiled)
        if name == BLIND and isinstance(draft, SequentialDraft):
            draft.take(HiddenAdapter(draft.width))
        if name in trees:
            tree = TreeShape(**trees[name])
        else:
            print(f"choosing the tree of {name}", file=sys.stderr, flush=True)
            rates: dict[TreeShape, float] = {}
            tree = fastest_tree(
                partial(_compiled_engine, compiled, draft),
                candidates,
                [request(item, 0.0, 0) for item in others],
                report=rates.__setitem__,
            )
            timed[name] = {f"{s.size}/{s.depth}/{s.width}": round(v, 1) for s, v in rates.items()}
        methods[name] = ours(_compiled_engine(compiled, draft, tree))
        trees[name] = asdict(tree)
        chosen.write_text(json.dumps(choice, indent=1) + "\n")
    return methods, choice


def _compiled_engine(target: Target, draft: Any, tree: TreeShape) -> Engine:
    return Engine(target, draft, tree=tree, compile=True)


def logit_gap(target: Target, item: Item, ours: list[int], theirs: list[int]) -> float:
    """Between the two tokens at which two answers part, of the model's own forward.

    Without bounds where one ends and the other says more.
    """
    parted = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    place = next(parted, None)
    if place is None:  # one of them goes on behind the other's end
        return math.inf
    inputs = target.encode(item.question, [item.image]).inputs
    said = torch.tensor([theirs[:place]], dtype=torch.long)
    ids = torch.cat([inputs["input_ids"], said], 1)
    with torch.inference_mode():
        given = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = target.model(**given).logits[0, -1]
    return (logits[theirs[place]] - logits[ours[place]]).abs().item()


def warm_up(methods: dict[str, Method], items: Sequence[Item]) -> None:
    """Let what compiles compile now: two items of every task, one of them the longest question."""
    for task in dict.fromkeys(item.task for item in items):
        here = [item for item in items if item.task == task]
        for item in (here[0], max(here, key=lambda item: len(item.question))):
            for method in methods.values():
                for temperature in TEMPERATURES:
                    method(item, temperature, 0)


def compilations() -> int:
    """How many graphs were compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
