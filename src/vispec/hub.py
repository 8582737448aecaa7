"""Drafts as repositories: saved with a model card, loaded by name, pushed to the hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vispec.checkpoints import export
from vispec.checkpoints.files import locate
from vispec.checkpoints.registry import read
from vispec.decoding.tree import TreeShape


@dataclass(frozen=True)
class Card:
    """What a model card says beside what the draft itself tells.

    Args:
        target: hub name of the model that the draft was trained for.
        data: what it was trained on.
        recipe: how: stages, steps, learning rate, seed.
        acceptance: tokens a pass of the target, by task, the bonus token included.
        limits: what it should not be used for, and what was not tested.
        licence: SPDX name, or what the weights' own licence is called.
        tree: draft tree that is recommended, as `TreeShape`'s fields.
    """

    target: str | None = None
    data: str = ""
    recipe: str = ""
    acceptance: Mapping[str, float] = field(default_factory=dict)
    limits: str = ""
    licence: str | None = None
    tree: Mapping[str, int] | None = None


def from_pretrained(name: str | os.PathLike[str], *, allow_pickle: bool = False) -> Any:
    """A draft from a folder, a hub repository (`name@revision` pins one), or `"embedded"`.

    Nothing is executed that comes with it. With `HF_HUB_OFFLINE=1` only what is on disk is used.

    Args:
        allow_pickle: read pickled weights where there are no safetensors; opening them can run
            code.

    Raises:
        CheckpointError: if there is no draft of a known format, or its tensors are not what its
            configuration promises.
    """
    return read(locate(name, "draft"), label=os.fspath(name), pickled=allow_pickle)


def save_pretrained(
    draft: nn.Module,
    folder: str | os.PathLike[str],
    card: Card | None = None,
    name: str | None = None,
) -> None:
    """Write configuration, safetensors and a model card, in the draft's own published format.

    Args:
        folder: is made where it does not exist.
        card: what the model card says.
        name: how the card says that the draft is loaded; the folder by default.
    """
    card = card or Card()
    extra: dict[str, Any] = {}
    if card.target:
        extra["target"] = card.target
    if card.tree:
        TreeShape(**card.tree)  # before anything is written
        extra["tree"] = dict(card.tree)
    export.write(draft, folder, **extra)
    (Path(folder) / "README.md").write_text(
        write_card(draft, card, name or os.fspath(folder)), encoding="utf-8"
    )


def push_to_hub(
    draft: nn.Module,
    repository: str,
    card: Card | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload draft",
) -> str:
    """Save a draft and upload it; you must be logged in (`hf auth login`).

    Args:
        repository: `owner/name`; is made where it does not exist.
        card: what its model card says.
        private: of a repository that is made.
        revision: a branch; the main one by default.
        message: of the commit.

    Returns:
        the address of the commit.
    """
    import huggingface_hub as hub

    api = hub.HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(draft, folder, card, repository)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message
        )
    return str(getattr(done, "commit_url", done))


def write_card(draft: nn.Module, card: Card, name: str) -> str:
    """The text of a model card, with the header that the hub reads."""
    kind, target = export.own_format(draft), card.target or "TARGET"
    size = sum(parameter.numel() for parameter in draft.parameters())
    header = ["library_name: vispec", "tags:", "- speculative-decoding", f"- {kind}"]
    header += [f"license: {card.licence}"] if card.licence else []
    header += [f"base_model: {card.target}", "base_model_relation: adapter"] if card.target else []
    parts = [
        "---\n" + "\n".join(header) + "\n---",
        f"# A draft for {card.target or 'a target'}",
        f"A speculative decoding draft in the {kind} format, {size / 1e6:.3g} million parameters."
        " It proposes tokens; the target checks them, and the text stays the target's own.",
        "```python\nimport vispec\n\n"
        f'vlm = vispec.load("{target}", draft="{name}")\n'
        'print(vlm.generate("What is this?", images=["photo.jpg"]).text)\n```',
    ]
    for title, text in (
        ("Data", card.data),
        ("Training", card.recipe),
        ("Limits", card.limits),
    ):
        if text:
            parts.append(f"## {title}\n\n{text}")
    if card.acceptance:
        rows = [f"| {task} | {length:.2f} |" for task, length in card.acceptance.items()]
        parts.append(
            "## Acceptance\n\nTokens a pass of the target, the bonus token included, on held-out"
            " items.\n\n| task | acceptance length |\n|---|---|\n" + "\n".join(rows)
        )
    return "\n\n".join(parts) + "\n"
