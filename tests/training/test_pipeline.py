"""A recipe and a folder of pictures become a draft that is loaded and used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import spread
import talking
import tiny
import vispec
from drafts.test_reading import ADAPTERS
from vispec.decoding import planner
from vispec.drafts import Eagle3Draft, EagleDraft
from vispec.drafts.compression import compress
from vispec.drafts.medusa import MedusaDraft
from vispec.errors import SettingsError, VispecError
from vispec.training import auto, pipeline, stages
from vispec.training.curves import read_log
from vispec.training.distill import Question
from vispec.training.drafts import new_draft
from vispec.training.questions import questions
from vispec.training.recipe import DraftRecipe, Recipe, recipe


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking.save(tmp_path_factory.mktemp("target"), max_position_embeddings=512)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    for part, first in (("train", 0), ("heldout", 20)):
        (folder / part).mkdir()
        for i in range(first, first + 6):
            talking.picture(i).save(folder / part / f"{i}.png")
        (folder / part / "prompts.txt").write_text("the cat\nwhat is it ?\n")
    return folder


def wanted(target: Path, asked: Path, steps: int = 3, **draft: Any) -> Recipe:
    pictures = {"path": str(asked / "train")}
    stage = {"learning_rate": 3e-3, "steps": steps, "batch": 4, "bf16": False}
    return recipe(
        {
            "target": str(target),
            "draft": draft,
            "max_new_tokens": 12,
            "max_batch": 3,
            "data": {
                "text": pictures | {"shown": False},
                "shown": pictures,
                "heldout": {"path": str(asked / "heldout")},
            },
            "stages": [
                {"name": "one", "data": ["text"], "losses": {"soft_cross_entropy": 1.0}, **stage},
                {
                    "name": "two",
                    "data": ["shown", "text"],
                    "losses": {"kl": 1.0},
                    "self_fed": int(draft.get("kind") != "medusa"),
                    **stage,
                },
            ],
        },
        "mine",
    )


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        ({"kind": "eagle3", "aux_layers": [0, 1, 999]}, ["aux_layers has 999", "0 to 2"]),
        ({"kind": "eagle3", "vocabulary": 10**6}, ["1000000"]),
        ({"adapter": {"kind": "transformer", "heads": 7, "inner": 8}}, ["transformer", "heads"]),
    ],
    ids=str,
)
def test_a_draft_that_the_target_cannot_have_is_refused_before_it_answers(
    target: Path, asked: Path, tmp_path: Path, draft: dict[str, Any], words: list[str]
) -> None:
    alone = wanted(target, asked, **draft)
    candidate = replace(wanted(target, asked), candidates=[DraftRecipe(), alone.draft])
    for stated in (alone, candidate):
        with pytest.raises(SettingsError) as error:
            pipeline.train(stated, tmp_path / "out")
        assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "out").exists()


def test_a_compressed_draft_is_no_beginning(target: Path, asked: Path, tmp_path: Path) -> None:
    whole = new_draft(vispec.load(target).target, DraftRecipe())
    vispec.save_pretrained(compress(whole.to(torch.bfloat16), "int8"), tmp_path / "int8")
    with pytest.raises(SettingsError, match="compressed draft, which learns no more"):
        pipeline.train(wanted(target, asked), tmp_path / "out", init=str(tmp_path / "int8"))


KINDS: dict[str, tuple[dict[str, Any], type]] = {
    "vispec": ({"adapter": ADAPTERS["query"]}, EagleDraft),
    "eagle, two layers": ({"layers": 2}, EagleDraft),
    "eagle, fused": ({"aux_layers": [0, 1, 2], "adapter": ADAPTERS["elastic"]}, EagleDraft),
    "eagle3": ({"kind": "eagle3", "aux_layers": [0, 1, 2], "vocabulary": 30}, Eagle3Draft),
    "medusa": ({"kind": "medusa", "heads": 3}, MedusaDraft),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_draft_is_trained_and_used(
    target: Path, asked: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real ones, the deepest of which is deeper than any draft here was trained for.
    monkeypatch.setattr(pipeline, "TREES", planner.TREES)
    draft, network = KINDS[kind]
    found = pipeline.train(wanted(target, asked, **draft), tmp_path, command="vispec train x")
    engine = vispec.load(target, tmp_path / "draft", dtype=torch.float64)
    assert isinstance(engine.draft, network)
    picture = [talking.picture(30)]
    plain = engine.generate("the cat", picture, max_new_tokens=12, speculate=False)
    assert engine.generate("the cat", picture, max_new_tokens=12).token_ids == plain.token_ids
    assert found["acceptance_length"] >= 1
    assert engine.tree in pipeline.SHAPES
    chosen = tmp_path / "stages" / "two" / "tree.json"
    assert json.loads(chosen.read_text()) == asdict(engine.tree)
    stated = json.loads((tmp_path / "draft" / "provenance.json").read_text())
    assert stated["command"] == "vispec train x"
    assert stated["answers"] == {"text": 6, "shown": 6, "heldout": 6}
    assert len(stated["data"]) == len(stated["questions"]) == 3
    card = (tmp_path / "draft" / "README.md").read_text()
    assert f"{found['acceptance_length']:.2f}" in card
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    for stage in ("one", "two"):
        lines = (tmp_path / "stages" / stage / "log.jsonl").read_text().splitlines()
        assert "heldout_acceptance_length" in json.loads(lines[-1])


@pytest.mark.slow
def test_a_stage_with_patience_ends_when_no_more_is_accepted(
    target: Path, asked: Path, tmp_path: Path
) -> None:
    """What it waits for is what is measured, and what tensorboard shows."""
    whole = wanted(target, asked, steps=50)
    idle = replace(whole.stages[0], learning_rate=1e-12, patience=2, evaluate_steps=1)
    pipeline.train(replace(whole, stages=[idle]), tmp_path)
    place = tmp_path / "stages" / "one"
    watched = [line for line in read_log(place) if stages.WATCHED in line]
    assert [line["step"] for line in watched] == [1, 2, 3]
    board = EventAccumulator(str(place))
    board.Reload()
    shown = [(one.step, one.value) for one in board.Scalars(stages.WATCHED)]
    assert shown == [(line["step"], pytest.approx(line[stages.WATCHED])) for line in watched]
    assert [one.step for one in board.Scalars("loss")] == [1, 2, 3]


def test_a_draft_that_is_written_again_says_still_what_trained_it(
    target: Path, asked: Path, tmp_path: Path
) -> None:
    recipe = wanted(target, asked)
    for command in ("the first", "again, for another tree"):
        pipeline.train(recipe, tmp_path, command=command)
    stated = json.loads((tmp_path / "draft" / "provenance.json").read_text())
    assert stated["command"] == "the first"
    longer = replace(recipe, stages=(*recipe.stages, replace(recipe.stages[-1], name="three")))
    pipeline.train(longer, tmp_path, command="longer")
    stated = json.loads((tmp_path / "draft" / "provenance.json").read_text())
    assert stated["command"] == "longer"


def test_trees_are_timed_on_questions_that_were_learnt_from_greedily_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    best = pipeline.SHAPES[1]

    def fastest(engine: Any, trees: Any, requests: Any, rounds: int, answered: Any) -> Any:
        asked.append(requests)
        answered()
        assert engine(best).tree == best
        return best

    monkeypatch.setattr(pipeline, "fastest_tree", fastest)
    groups = [[Question(f"{g}{i}", f"{g} {i}", temperature=1.0) for i in range(n)]
              for g, n in (("many", 100), ("few", 3))]  # fmt: skip
    for _ in range(2):
        found = pipeline.chosen_tree(
            tiny.draft(queries=None), tiny.target(), groups, 7, tmp_path / "tree.json"
        )
        assert found == best
    (requests,) = asked
    prompts = [request.prompt for request in requests]
    many = [f"many {i}" for i in range(0, 100, 17)]
    assert prompts == [*many, "few 0", "few 1", "few 2"]
    assert {(r.sampling.temperature, r.sampling.max_new_tokens) for r in requests} == {(0.0, 7)}


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["vispec", "eagle3", "medusa"])
def test_targets_of_half_precision_have_drafts_trained(
    asked: Path, tmp_path: Path, kind: str, bf16: bool
) -> None:
    half = talking.save(tmp_path / "half", torch.bfloat16, max_position_embeddings=512)
    whole = wanted(half, asked, **KINDS[kind][0])
    whole = replace(whole, stages=[replace(stage, bf16=bf16) for stage in whole.stages])
    found = pipeline.train(whole, tmp_path / "run")
    assert found["acceptance_length"] >= 1
    engine = vispec.load(half, tmp_path / "run" / "draft")
    assert engine.target.dtype == torch.bfloat16
    assert engine.generate("the cat", [talking.picture(30)], max_new_tokens=12).token_ids


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_begins_from_another(
    target: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = wanted(target, asked, adapter=ADAPTERS["query"])
    whole = replace(whole, stages=[whole.stages[0], replace(whole.stages[1], muon=2.0)])
    pipeline.train(whole, tmp_path / "whole")
    kept = tmp_path / "killed"
    with monkeypatch.context() as patch:

        def dies(*given: Any, **options: Any) -> None:
            if given[2].name == "two":
                raise KeyboardInterrupt
            run(*given, **options)

        run = pipeline.run_stage
        patch.setattr(pipeline, "run_stage", dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(whole, kept)
    answers = {path: path.stat().st_mtime_ns for path in kept.rglob("*.parquet")}
    pipeline.train(whole, kept)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.parquet")} == answers
    one, other = (vispec.from_pretrained(tmp_path / n / "draft") for n in ("whole", "killed"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())

    with pytest.raises(VispecError, match="another run: max_new_tokens"):
        pipeline.train(replace(whole, max_new_tokens=5), kept)
    # A stage that is done is not taken for one with other settings.
    faster = [whole.stages[0], replace(whole.stages[1], learning_rate=1.0)]
    with pytest.raises(VispecError, match=r"another run: stage\.learning_rate was"):
        pipeline.train(replace(whole, stages=faster), kept)
    # Nor is one that came behind others than now.
    for others in ([whole.stages[1]], [replace(whole.stages[0], name="zero"), *whole.stages]):
        with pytest.raises(VispecError, match="another run: before was"):
            pipeline.train(replace(whole, stages=others), kept)
    origin = json.loads((kept / "stages" / "two" / "checkpoint" / "provenance.json").read_text())
    assert origin["step"] == 3
    assert len(origin["data"]) == 3

    # A draft to begin with is not passed off as another that the recipe describes.
    begun = str(tmp_path / "whole" / "draft")
    for other in (DraftRecipe(kind="medusa"), DraftRecipe(adapter=ADAPTERS["pooling"])):
        with pytest.raises(SettingsError, match=r"another draft .*\. Leave \[draft\] out"):
            pipeline.train(replace(whole, draft=other), tmp_path / str(other.kind), init=begun)

    # One without an adapter takes the recipe's, which has the rest as it was.
    bare = replace(whole.stages[0], name="bare")
    pipeline.train(replace(whole, draft=DraftRecipe(), stages=[bare]), tmp_path / "eagle")
    stage = replace(whole.stages[1], train="adapter", name="taken")
    begun_bare = str(tmp_path / "eagle" / "draft")
    pipeline.train(replace(whole, stages=[stage]), tmp_path / "taken", init=begun_bare)
    eagle, taken = (vispec.from_pretrained(tmp_path / n / "draft") for n in ("eagle", "taken"))
    assert eagle.adapter is None
    assert isinstance(taken.adapter, type(one.adapter))
    kept = taken.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in eagle.state_dict().items())

    # From that draft on, its adapter alone.
    stage = replace(whole.stages[1], train="adapter", name="adapter")
    begun = str(tmp_path / "whole" / "draft")
    pipeline.train(replace(whole, stages=[stage]), tmp_path / "tuned", init=begun)
    tuned = vispec.from_pretrained(tmp_path / "tuned" / "draft")
    same = {k: torch.equal(v, tuned.state_dict()[k]) for k, v in one.state_dict().items()}
    assert {k.split(".")[0] for k, v in same.items() if not v} == {"adapter", "img_fc"}


SPREAD = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import spread
way = sys.argv[1]
spread.WAYS[way]()
from training.test_pipeline import KINDS, wanted
from vispec.training import pipeline, trainer
step = trainer.Trainer._step
def looking(self):
    kind = type(self.running) if way == "deepspeed" else type(next(self.running.parameters()))
    assert dict(fsdp="DTensor", deepspeed="DeepSpeedEngine")[way] == kind.__name__
    return step(self)
trainer.Trainer._step = looking
target, asked, out = map(Path, sys.argv[2:])
pipeline.train(wanted(target, asked, **KINDS["vispec"][0]), out)
spread.leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", spread.PARAMETERS)
def test_a_draft_whose_weights_are_spread_over_processes_is_that_of_one(
    target: Path, asked: Path, tmp_path: Path, way: str
) -> None:
    """As FSDP 2 and DeepSpeed do it, through both stages."""
    pipeline.train(wanted(target, asked, **KINDS["vispec"][0]), tmp_path / "whole")
    script = tmp_path / "script.py"
    script.write_text(SPREAD.format(path=sys.path))
    spread.run(way, script, target, asked, tmp_path / "spread")
    one, other = (vispec.from_pretrained(tmp_path / n / "draft") for n in ("whole", "spread"))
    for key, value in one.state_dict().items():
        # In bfloat16 of float32 sums that were added up in another order.
        other_value = other.state_dict()[key].float()
        torch.testing.assert_close(value.float(), other_value, rtol=0, atol=4e-3)


DIES = """
import functools, os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from training.test_pipeline import KINDS, shipped, wanted
from vispec.training import pipeline, stages
stages.Settings = functools.partial(stages.Settings, checkpoint_s=0.0)
stage, left = stages.Stage.forward, [4]
def dies(self, samples):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return stage(self, samples)
stages.Stage.forward = dies
target, asked, out = map(Path, sys.argv[1:])
pipeline.train(shipped(wanted(target, asked, 4, **KINDS["vispec"][0])), out)
"""


def shipped(recipe: Recipe) -> Recipe:
    """With the optimizer and the numbers of the recipes that come along."""
    return replace(recipe, stages=[replace(s, muon=2.0, bf16=True) for s in recipe.stages])


@pytest.mark.slow
def test_a_draft_whose_training_is_killed_outright_ends_the_same(
    target: Path, asked: Path, tmp_path: Path
) -> None:
    """Twice: in the middle of the first stage, and of the second."""
    whole = shipped(wanted(target, asked, 4, **KINDS["vispec"][0]))
    pipeline.train(whole, tmp_path / "whole")
    script = tmp_path / "script.py"
    script.write_text(DIES.format(path=sys.path))
    command = [sys.executable, str(script), str(target), str(asked), str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    codes = []
    while not (tmp_path / "killed" / "draft").exists():
        codes.append(subprocess.run(command, timeout=300, env=environment).returncode)
        assert codes[-1] in (0, -signal.SIGKILL)
        assert len(codes) < 9
    assert codes.count(-signal.SIGKILL) >= 2
    one, other = (vispec.from_pretrained(tmp_path / n / "draft") for n in ("whole", "killed"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.slow
def test_features_online_train_as_kept_ones(target: Path, asked: Path, tmp_path: Path) -> None:
    made = []
    for features in ("online", "float32"):
        chosen = replace(wanted(target, asked, adapter=ADAPTERS["pooling"]), features=features)
        pipeline.train(chosen, tmp_path / features)
        made.append(vispec.from_pretrained(tmp_path / features / "draft"))
    one, other = (draft.state_dict() for draft in made)
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert not (tmp_path / "online" / "features").exists()


def test_recipes_may_share_some_of_their_answers(target: Path, asked: Path, tmp_path: Path) -> None:
    whole = wanted(target, asked)
    groups = {name: questions(source, name) for name, source in whole.data.items()}
    some = {name: groups[name] for name in ("text", "heldout")}
    stated = pipeline.claim_answers(whole, tmp_path, some)
    assert stated["questions"].keys() == some.keys()
    # Further questions are welcome, others under a name that is taken are not.
    pipeline.claim_answers(whole, tmp_path, groups)
    pipeline.claim_answers(whole, tmp_path, some)
    with pytest.raises(
        VispecError, match=r"of another run: what \[data\.text\] asks \(rows, .*\) was"
    ):
        pipeline.claim_answers(whole, tmp_path, {"text": groups["heldout"]})
    with pytest.raises(VispecError, match="max_new_tokens was 12"):
        pipeline.claim_answers(replace(whole, max_new_tokens=13), tmp_path, {})


def test_what_acceptance_is_measured_on_is_not_learnt_from(
    target: Path, asked: Path, tmp_path: Path
) -> None:
    row = {"prompt": "what is it ?", "image": str(asked / "heldout" / "21.png")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    whole = wanted(target, asked)
    data = whole.data | {"shown": replace(whole.data["shown"], path=str(tmp_path / "rows.jsonl"))}
    with pytest.raises(SettingsError, match=r"share 1 questions, 'shown-rows-1' for one"):
        pipeline.train(replace(whole, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_candidate_that_decodes_fastest_is_chosen(
    target: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, pooled = ADAPTERS["hidden"], ADAPTERS["pooling"]
    whole = replace(
        wanted(target, asked),
        candidates=[DraftRecipe(adapter=hidden), DraftRecipe(adapter=pooled), DraftRecipe()],
    )
    best = auto.choose(whole, tmp_path, 0.03)
    rows = json.loads((tmp_path / "auto.json").read_text())
    fastest = max(rows, key=lambda row: row["tokens_per_s"])
    assert len(rows) == 3
    assert fastest["draft"]["adapter"] == best.adapter
    # All of them learn from the same answers and features.
    assert len(list(tmp_path.rglob("answers-*.parquet"))) == 3
    assert len(list(tmp_path.rglob("features-*.safetensors"))) == 3
    # What was decided is not timed again.
    monkeypatch.setattr(auto, "speeds", lambda engines, *_, **__: pytest.fail("timed again"))
    assert auto.choose(whole, tmp_path, 0.03) == best
    (tmp_path / "auto.json").unlink()
    monkeypatch.setattr(auto, "speeds", lambda engines, *_, **__: [1.0, 3.0, 2.0])
    assert auto.choose(whole, tmp_path, 0.03).adapter == pooled
    with pytest.raises(VispecError, match="another run: candidates"):
        auto.choose(replace(whole, candidates=whole.candidates[::-1]), tmp_path, 0.03)
    mixed = [whole.stages[0], replace(whole.stages[1], steps=0, minutes=1.0)]
    with pytest.raises(SettingsError, match="no share of a time"):
        auto.choose(replace(whole, stages=mixed), tmp_path / "mixed", 0.03)
    with pytest.raises(SettingsError, match=r"0\.0 minutes train no candidate"):
        auto.choose(whole, tmp_path / "none", 0.0)
    with pytest.raises(SettingsError, match="1 candidates"):
        auto.choose(replace(whole, candidates=whole.candidates[:1]), tmp_path, 1)
