"""Recipes say all that is wrong with them before anything is loaded."""

from __future__ import annotations

import copy
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vispec.errors import SettingsError
from vispec.training import losses
from vispec.training.questions import Source
from vispec.training.recipe import RECIPES, read_recipe, recipe

STAGE: dict[str, Any] = {
    "name": "text",
    "data": ["text"],
    "losses": {"features": 1.0},
    "learning_rate": 1e-3,
    "steps": 10,
}
STATED: dict[str, Any] = {
    "target": "embedded",
    "draft": {"adapter": {"kind": "query", "heads": 4}},
    "data": {"text": {"path": "a"}, "heldout": {"path": "b", "limit": 3}},
    "stages": [STAGE],
}


def changed(**changes: Any) -> dict[str, Any]:
    """With entries replaced, by their path; None takes one away."""
    stated = copy.deepcopy(STATED)
    for path, value in changes.items():
        *way, last = path.split("__")
        place: Any = stated
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return stated


def test_a_recipe_is_what_it_states() -> None:
    found = recipe(STATED, "mine")
    assert found.target == "embedded"
    assert found.draft.adapter == {"kind": "query", "heads": 4}
    assert found.data["heldout"].limit == 3
    assert found.stages[0].losses == {"features": 1.0}
    assert found.stages[0].batch == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"taget": "x"}, ["taget", "there is no such setting"]),
        ({"target": None}, ["target", "is missing"]),
        ({"seed": "one"}, ["seed", "integer"]),
        ({"seed": "1"}, ["seed", "integer"]),
        ({"stages__0__learning_rate": "fast"}, [r"stages\.0\.learning_rate", "number"]),
        ({"stages__0__lr": 1}, [r"stages\.0\.lr"]),
        ({"data__text__paths": "x"}, [r"data\.text\.paths"]),
        ({"draft__kind": "hydra"}, [r"draft\.kind", "eagle3"]),
        ({"draft__adapter": {"kind": "quantum"}}, ["quantum", "pooling"]),
        ({"draft__adapter": {"kind": "pooling", "kep": 3}}, ["kep"]),
        ({"draft__kind": "medusa", "stages__0__losses": {"kl": 1.0}}, ["no images"]),
        ({"features": "float64"}, ["features", "online"]),
        ({"data__heldout": None}, ["heldout"]),
        ({"stages": []}, ["stages"]),
        ({"stages": [STAGE, STAGE]}, ["share a name"]),
        ({"stages__0__losses": {"mse": 1.0}}, ["mse", "soft_cross_entropy"]),
        ({"stages__0__minutes": 3.0}, ["both steps and minutes"]),
        ({"stages__0__steps": 0}, ["neither"]),
        ({"stages__0__data": ["texts"]}, ["'texts'", "Known are text, heldout"]),
        ({"stages__0__data": ["heldout"]}, ["learns from heldout"]),
        ({"stages__0__data": []}, [r"stages\.0\.data", "at least 1"]),
        ({"stages__0__learning_rate": -1.0}, [r"stages\.0\.learning_rate", "greater than 0"]),
        ({"stages__0__steps": -5}, [r"stages\.0\.steps"]),
        ({"stages__0__batch": 0}, [r"stages\.0\.batch"]),
        ({"stages__0__accumulate": 0}, [r"stages\.0\.accumulate"]),
        ({"stages__0__ema": 1.0}, [r"stages\.0\.ema"]),
        ({"stages__0__name": "a/b"}, [r"stages\.0\.name"]),
        ({"stages__0__train": "adapter", "draft__adapter": None}, ["there is no adapter"]),
        ({"stages__0__losses": {"features": 1.0}, "draft__kind": "eagle3"}, ["guesses tokens"]),
        # What a stage asks is asked of candidates, too.
        (
            {"stages__0__train": "adapter", "candidates": [{"kind": "eagle"}]},
            ["there is no adapter"],
        ),
        (
            {"stages__0__losses": {"features": 1.0}, "candidates": [{"kind": "eagle3"}]},
            ["eagle3 guesses tokens"],
        ),
        (
            {
                "stages__0__losses": {"kl": 1.0},
                "stages__0__self_fed": 1,
                "candidates": [{"kind": "medusa"}],
            },
            ["self_fed", "run once"],
        ),
        ({"max_batch": 0}, ["max_batch"]),
        ({"data__heldout__path": "a"}, ["share rows of 'a'"]),
        ({"draft__adapter": {"kind": "pooling", "keep": "16"}}, ["keep", "'16'"]),
        ({"draft__adapter": {"kind": "pooling", "keep": 1.5}}, ["keep", "1.5"]),
        ({"draft__adapter": {"kind": "query", "heads": 0}}, ["heads", "is 0"]),
        ({"draft__adapter": {"kind": "query", "heads": 4, "bias": "no"}}, ["bias", "'no'", "true"]),
        ({"draft__adapter": {"kind": "mlp", "inner": 4, "reconstruct": "a"}}, ["reconstruct"]),
        ({"draft__adapter": {"kind": "elastic", "parts": []}}, ["parts", "[]"]),
        (
            {
                "draft__adapter": {
                    "kind": "elastic",
                    "parts": [{"kind": "hidden"}],
                    "temperature": 0,
                }
            },
            ["temperature is 0"],
        ),
        ({"stages__0__losses": {"features": -1.0}}, [r"losses\.features", "greater than"]),
        ({"stages__0__losses": {"features": float("nan")}}, [r"losses\.features"]),
        ({"stages__0__losses": {"features": 0.0}}, ["no loss has a weight"]),
        (
            {"stages__0__train": "adapter", "draft__adapter": {"kind": "hidden"}},
            ["stage 'text' trains the adapter", "no weights"],
        ),
        ({"draft__adapter": {"kind": "linear", "hidden_size": 3}}, ["hidden_size"]),
        ({"stages__0__name": ".."}, [r"stages\.0\.name"]),
        ({"draft__vocabulary": 100}, ["eagle has no vocabulary", "eagle3"]),
        ({"draft__heads": 3}, ["eagle has no heads", "medusa"]),
        (
            {
                "draft": {"kind": "medusa"},
                "stages__0__losses": {"kl": 1.0},
                "stages__0__self_fed": 1,
            },
            ["self_fed", "run once"],
        ),
        (
            {
                "draft": {
                    "kind": "eagle3",
                    "adapter": {"kind": "pooling", "keep": 4, "rows": True},
                },
                "stages__0__losses": {"kl": 1.0},
            },
            ["twice as wide", "rows"],
        ),
        (
            {
                "draft__adapter": [
                    {"kind": "selector", "kinds": ["a"], "parts": [{"kind": "hidden"}]}
                ]
            },
            ["selector is not trained"],
        ),
        (
            {"draft__adapter": {"kind": "selector", "kinds": ["a"], "parts": [{"kind": "hidden"}]}},
            ["selector is not trained"],
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        recipe(changed(**changes), "mine")
    for word in words:
        assert any(one in str(error.value) for one in word.replace("\\", "").split("|"))


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "resampler", "heads": 3, "queries": 4, "inner": 8},
        {"kind": "transformer", "heads": 28, "inner": 8},
        [{"kind": "pooling", "keep": 4}, {"kind": "query", "heads": 80}],
    ],
    ids=str,
)
def test_heads_are_for_the_targets_width_to_be_divided_by(adapter: Any) -> None:
    assert recipe(changed(draft__adapter=adapter), "mine").draft.adapter == adapter


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        recipe(changed(seed="one", target=None, stages__0__lr=2), "mine")
    for word in ("seed", "target", "stages.0.lr"):
        assert word in str(error.value)


def test_paths_are_from_the_recipes_own_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    text = 'target = "x"\nstages = []\n'
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        read_recipe(file)
    found = recipe(STATED, "mine", tmp_path)
    assert found.data["text"].path == str(tmp_path / "a")
    assert found.data["heldout"].path == "b"
    # A target's, too, if there is a model; but what is built in has one name everywhere.
    for name in ("mine", "embedded"):
        (tmp_path / name).mkdir()
        stated = changed(target=name)
        assert recipe(stated, "mine", tmp_path).target == name
        (tmp_path / name / "config.json").write_text("{}")
        own = str(tmp_path / name) if name == "mine" else name
        assert recipe(stated, "mine", tmp_path).target == own


@pytest.mark.parametrize("text", ["target =", None])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "mine.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match="cannot be read as a recipe"):
        read_recipe(file)


COME_ALONG = sorted(path.stem for path in RECIPES.glob("*.toml"))


OF_VISPEC = [name for name in COME_ALONG if name not in ("embedded", "embedded-eagle3")]


@pytest.mark.parametrize("name", OF_VISPEC)
def test_recipes_that_come_along_have_the_papers_stages(name: str) -> None:
    text, multimodal = read_recipe(RECIPES / f"{name}.toml").stages
    assert (text.name, text.losses) == ("text", losses.TEXT_STAGE)
    # At the built-in target's size, one more loss made much better drafts, and passes do late.
    built_in = name == "embedded-eagle"
    more = {"soft_cross_entropy": 4.0} if built_in else {}
    assert (multimodal.name, multimodal.losses) == ("multimodal", losses.MULTIMODAL_STAGE | more)
    assert (text.self_fed, multimodal.self_fed) == (0, 3 if built_in else 1)


def test_the_recipe_of_eagle3_has_its_papers_training() -> None:
    found = read_recipe(RECIPES / "embedded-eagle3.toml")
    (stage,) = found.stages
    # Tokens alone are learnt, three further steps of drafting among them (arXiv 2503.01840).
    assert (found.draft.kind, stage.losses) == ("eagle3", {"soft_cross_entropy": 1.0})
    assert (stage.self_fed, stage.noise, stage.relative_noise) == (3, 0.0, 0.0)


def test_the_built_in_draft_and_the_eagle3_beside_it_differ_by_the_adapter_alone() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "drafts"
    mine, other = read_recipe(RECIPES / "embedded.toml"), read_recipe(folder / "eagle3.toml")
    assert mine == replace(other, draft=mine.draft)
    assert (mine.draft.adapter, other.draft.adapter) == (
        {"kind": "query", "heads": 3, "queries": 1, "beside": True},
        None,
    )


@pytest.mark.parametrize("name", [name for name in COME_ALONG if not name.startswith("embedded")])
def test_recipes_of_published_targets_are_right(name: str) -> None:
    found = read_recipe(RECIPES / f"{name}.toml")
    for source in found.data.values():
        assert source.first + source.limit <= ROWS[source.path, source.config]
    for stage in found.stages:
        # As the published commands have it.
        assert (stage.learning_rate, stage.noise) == (3e-6, 0.2)
        # Numbers of the gradient are limited, not its length; torch's own decay.
        assert (stage.clip, stage.clip_value, stage.weight_decay) == (0.0, 0.5, 0.01)


ROWS = {
    ("Aeala/ShareGPT_Vicuna_unfiltered", ""): 90_000,
    ("lmms-lab/LLaVA-OneVision-Data", "sharegpt4v(coco)"): 50_017,
}
"""At least how many the published datasets have."""


def test_rows_that_are_shared_are_seen() -> None:
    whole = Source("a")
    assert whole.overlaps(Source("a", first=1000))
    assert not whole.overlaps(Source("a", config="b"))
    assert not whole.overlaps(Source("a", split="test"))
    assert not Source("a", limit=5).overlaps(Source("a", first=5, limit=2))
    assert Source("a", limit=6).overlaps(Source("a", first=5, limit=2))
    # Which rows of a split a slice has is not known here.
    assert Source("a", split="train[:9]").overlaps(Source("a", split="train[-9:]"))
    assert Source("a", split="train + test").overlaps(Source("a", split="test"))
    assert not Source("a", split="train[:9]").overlaps(Source("a", split="test"))


def test_a_folder_is_the_same_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    whole = Source("a")
    for other in (Source("./a"), Source(str(tmp_path / "a")), Source("a", split="test")):
        assert whole.overlaps(other)
    assert not Source("a", limit=2).overlaps(Source("./a", first=2))


def test_what_no_recipe_can_hold_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"target = '\xff'")
    with pytest.raises(SettingsError, match="cannot be read as a recipe"):
        read_recipe(path)
    path.write_text("target = 2026-01-01")
    with pytest.raises(SettingsError, match=r"has a date or a time, 2026-01-01\. Write"):
        read_recipe(path)


def test_the_documentation_shows_recipes() -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    shown = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    whole = tomllib.loads(shown[0])
    for text in shown:  # the others are parts of one
        recipe(whole | tomllib.loads(text), str(page))
