"""Numbers of an answer, counted by hand."""

from __future__ import annotations

import json
import random

import pytest

from vispec.decoding.stats import Stats


def test_passes_are_counted_as_by_hand() -> None:
    for seed in range(50):
        draw, stats = random.Random(seed), Stats(new_tokens=1)
        passes = [(accepted, accepted + 1) for accepted in draw.choices(range(6), k=9)]
        if draw.random() < 0.5:  # an end inside the last tree cuts its tokens short
            passes[-1] = (passes[-1][0], draw.randint(1, passes[-1][0] + 1))
        for accepted, emitted in passes:
            stats.count(accepted, emitted)
        drafted = [min(accepted, emitted) for accepted, emitted in passes]
        assert stats.target_passes == len(passes)
        assert stats.new_tokens == 1 + sum(emitted for _, emitted in passes)
        assert stats.accepted_tokens == sum(drafted)
        deepest = max(accepted for accepted, _ in passes)
        by_depth = [sum(d > depth for d in drafted) for depth in range(deepest)]
        assert stats.accepted_by_depth == by_depth
        assert stats.acceptance_length == (stats.new_tokens - 1) / len(passes)
        assert stats.accepted_per_pass == sum(drafted) / len(passes)


def test_an_answer_of_the_prefill_alone_divides_by_nothing() -> None:
    stats = Stats(new_tokens=1)
    assert (stats.acceptance_length, stats.accepted_per_pass, stats.tokens_per_s) == (0, 0, 0)


def test_speed_is_over_all_the_time_there_was() -> None:
    times = {"vision_s": 1, "prefill_s": 2, "read_s": 5, "draft_s": 3, "verify_s": 4}
    stats = Stats(new_tokens=30, **times, overhead_s=5)
    assert stats.total_s == 20
    assert stats.tokens_per_s == pytest.approx(1.5)


def test_everything_is_ready_for_json() -> None:
    stats = Stats(prompt_tokens=4, new_tokens=5)
    stats.count(2, 3)
    told = json.loads(json.dumps(stats.as_dict()))
    assert told["target_passes"] == 1
    assert told["accepted_by_depth"] == [1, 1]
    assert {"total_s", "tokens_per_s", "acceptance_length", "accepted_per_pass"} <= set(told)
