"""Drafts are saved with a card, loaded by name, and pushed as they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
import vispec
from vispec.checkpoints.files import weight_files
from vispec.checkpoints.registry import plan_of
from vispec.checkpoints.summary import summarise
from vispec.drafts import Eagle3Config, Eagle3Draft
from vispec.errors import CheckpointError

CARD = vispec.Card(
    target="someone/model",
    data="Pictures of cats.",
    recipe="Two stages.",
    acceptance={"questions": 3.456, "captions": 2.0},
    limits="Dogs.",
    licence="apache-2.0",
    tree={"size": 9, "depth": 3, "width": 2},
)


def test_a_saved_draft_is_loaded_with_what_its_card_says(tmp_path: Path) -> None:
    draft = tiny.draft(torch.float32)
    vispec.save_pretrained(draft, tmp_path, CARD)
    again = vispec.from_pretrained(tmp_path)
    ours, theirs = draft.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    facts = plan_of(tmp_path).facts
    assert facts == {"target": "someone/model", "tree": {"size": 9, "depth": 3, "width": 2}}
    assert not list(tmp_path.glob("*.bin"))


def test_a_card_has_the_hubs_header_and_every_section(tmp_path: Path) -> None:
    vispec.save_pretrained(tiny.draft(torch.float32), tmp_path, CARD)
    _, header, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    stated = yaml.safe_load(header)
    assert stated["base_model"] == "someone/model"
    assert stated["license"] == "apache-2.0"
    assert "vispec" in stated["tags"]
    for words in ("Pictures of cats.", "Two stages.", "Dogs.", "| questions | 3.46 |"):
        assert words in text
    assert 'vispec.load("someone/model"' in text


def test_a_card_that_says_nothing_claims_nothing(tmp_path: Path) -> None:
    vispec.save_pretrained(tiny.draft(torch.float32), tmp_path)
    text = (tmp_path / "README.md").read_text()
    for title in ("## Data", "## Training", "## Limits", "## Acceptance", "base_model", "license"):
        assert title not in text


@pytest.mark.parametrize(
    ("options", "form"), [({}, "eagle3"), ({"qk_norm": True}, "speculators eagle3")]
)
def test_every_draft_is_saved_in_a_format_that_holds_it(
    options: dict[str, Any], form: str, tmp_path: Path
) -> None:
    draft = Eagle3Draft(Eagle3Config(16, 24, 4, 2, 20, 20, **options))
    vispec.save_pretrained(draft, tmp_path)
    assert plan_of(tmp_path).form == form
    assert vispec.from_pretrained(tmp_path).config == draft.config


def test_the_embedded_draft_has_a_name() -> None:
    assert vispec.from_pretrained("embedded").adapter is not None


def test_pushing_uploads_what_saving_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **options: Any) -> None:
            done.append(("repo", repository, options))

        def create_branch(self, repository: str, **options: Any) -> None:
            done.append(("branch", options["branch"]))

        def upload_folder(self, **options: Any) -> str:
            done.append(sorted(path.name for path in Path(options["folder_path"]).iterdir()))
            done.append((options["repo_id"], options["revision"], options["commit_message"]))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    where = vispec.push_to_hub(
        tiny.draft(torch.float32), "me/draft", CARD, private=True, revision="v1", message="First"
    )
    assert where == "https://hub/commit"
    assert done == [
        ("repo", "me/draft", {"private": True, "exist_ok": True}),
        ("branch", "v1"),
        ["README.md", "config.json", "model.safetensors"],
        ("me/draft", "v1", "First"),
    ]


def pickled(folder: Path) -> Path:
    """A draft's folder as they were published before safetensors."""
    vispec.save_pretrained(tiny.draft(torch.float32), folder)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_unless_insisted_on(tmp_path: Path) -> None:
    folder = pickled(tmp_path)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        vispec.from_pretrained(folder)
    draft = vispec.from_pretrained(folder, allow_pickle=True)
    assert torch.equal(draft.fc.weight, tiny.draft(torch.float32).fc.weight)


def test_a_pickle_that_holds_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    folder = pickled(tmp_path)

    class Evil:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('it ran')",)

    torch.save({"fc.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"unreadable pytorch_model\.bin") as error:
        vispec.from_pretrained(folder, allow_pickle=True)
    assert "weights_only" not in str(error.value), "torch's advice to open it all the same"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/model", ("someone/model", None)),
        ("someone/model@v2", ("someone/model", "v2")),
        ("someone/model@refs/pr/3", ("someone/model", "refs/pr/3")),
    ],
)
def test_a_revision_may_follow_a_name(name: str, expected: tuple[str, str | None]) -> None:
    from vispec.checkpoints.files import pinned

    assert pinned(name) == expected


def test_a_folder_may_have_an_at_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "draft@home"
    vispec.save_pretrained(tiny.draft(torch.float32), folder)
    assert vispec.from_pretrained(folder).adapter is not None


def test_offline_a_name_that_is_not_on_disk_says_so() -> None:
    with pytest.raises(CheckpointError, match="could not be fetched"):
        vispec.from_pretrained("someone/never-downloaded@v1")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub repository that was downloaded before."""
    repository = tmp_path / "models--someone--draft"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    vispec.save_pretrained(tiny.draft(torch.float32), repository / "snapshots" / ("0" * 40), CARD)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return "someone/draft"


def test_offline_what_was_downloaded_before_is_described_and_loaded(cached: str) -> None:
    found = summarise(cached)
    assert (found.kind, found.form, found.problems) == ("draft", "vispec", [])
    assert found.trained_for == CARD.target
    assert vispec.from_pretrained(cached).adapter is not None
    with pytest.raises(CheckpointError, match="could not be fetched"):
        vispec.from_pretrained(f"{cached}@v9")


def test_pickled_weights_on_the_hub_are_refused_without_fetching_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def exists(repository: str, file: str, revision: str | None) -> bool:
        asked.append((repository, file, revision))
        return file == "pytorch_model.bin"

    monkeypatch.setattr("huggingface_hub.file_exists", exists)
    monkeypatch.setattr("vispec.checkpoints.files.fetch", lambda name, file: None)
    monkeypatch.setattr("vispec.checkpoints.files.is_offline_mode", lambda: False)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        weight_files("someone/old@v1")
    assert asked == [("someone/old", "pytorch_model.bin", "v1")]


def test_offline_pickled_weights_that_were_downloaded_are_used_where_insisted_on(
    cached: str, tmp_path: Path
) -> None:
    pickled(tmp_path / "models--someone--draft" / "snapshots" / ("0" * 40))
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        vispec.from_pretrained(cached)
    draft = vispec.from_pretrained(cached, allow_pickle=True)
    assert torch.equal(draft.fc.weight, tiny.draft(torch.float32).fc.weight)


def test_a_card_with_a_tree_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        vispec.save_pretrained(tiny.draft(torch.float32), tmp_path, vispec.Card(tree={"size": 1}))
    assert not list(tmp_path.iterdir())


def test_a_card_says_how_its_draft_is_loaded(tmp_path: Path) -> None:
    vispec.save_pretrained(tiny.draft(torch.float32), tmp_path, CARD)
    assert f'draft="{tmp_path}"' in (tmp_path / "README.md").read_text()
    vispec.save_pretrained(tiny.draft(torch.float32), tmp_path, CARD, "me/draft")
    assert 'draft="me/draft"' in (tmp_path / "README.md").read_text()
