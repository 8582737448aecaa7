"""From folders to an engine: what fits is shared, what does not fit is named."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

import talking
import tiny
import vispec
from vispec.adapters import QueryAdapter
from vispec.checkpoints import block as block_format
from vispec.checkpoints import eagle3 as eagle3_format
from vispec.checkpoints import vispec as vispec_format
from vispec.decoding.engine import Engine
from vispec.decoding.tree import TreeShape
from vispec.drafts import Eagle3Config, Eagle3Draft, EagleConfig, EagleDraft
from vispec.drafts.block import BlockConfig, BlockNetwork
from vispec.errors import (
    CheckpointError,
    ConversationError,
    DraftMismatchError,
    UnsupportedFamilyError,
    VideoError,
    VispecError,
)
from vispec.loading_drafts import load_draft
from vispec.loading_targets import _without_videos
from vispec.targets import FAMILIES
from vispec.targets.encoding import model_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and its processor."""
    return talking.save(tmp_path_factory.mktemp("target"))


def write_draft(
    folder: Path,
    hidden: int = tiny.HIDDEN,
    vocabulary: int = tiny.VOCAB,
    embedding: torch.Tensor | None = None,
    **extra: Any,
) -> Path:
    torch.manual_seed(1)
    own = None
    if embedding is not None:
        own = torch.nn.Embedding.from_pretrained(embedding.clone())
    draft = EagleDraft(EagleConfig(hidden, 64, 4, 2, vocabulary), QueryAdapter(hidden, 4, 3), own)
    vispec_format.write(draft, folder, **extra)
    return folder


def table(folder: Path) -> torch.Tensor:
    """The target's token embedding, as its file has it."""
    tensors = load_file(folder / "model.safetensors")
    return next(v for k, v in tensors.items() if k.endswith("embed_tokens.weight"))


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_a_folder_and_its_draft_answer_as_the_model_alone_does(
    folder: Path, tmp_path: Path
) -> None:
    engine = vispec.load(folder, write_draft(tmp_path))
    images = [talking.picture(0)]
    result = engine.generate("the cat", images, max_new_tokens=15)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    inputs = talking.processor()(
        images=images, text="<s>user: <image> the cat\nassistant:", return_tensors="pt"
    )
    expected = model.generate(**inputs, max_new_tokens=15, do_sample=False)
    assert result.token_ids == expected[0, inputs["input_ids"].shape[1] :].tolist()
    plain = engine.generate("the cat", images, max_new_tokens=15, speculate=False)
    assert (plain.token_ids, plain.text) == (result.token_ids, result.text)


def test_a_loaded_model_stays_the_users_own(folder: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    engine = vispec.load(model, tiny.draft(torch.float32), processor=talking.processor())
    assert engine.target.model is model
    named = vispec.load(model)  # its processor lies where the model came from
    options: dict[str, Any] = {"max_new_tokens": 9}
    assert named.generate("a", **options).text == engine.generate("a", **options).text
    again = vispec.load(engine.target)
    assert again.target is engine.target


# --- What a draft shares with its target ----------------------------------------------------------


def test_a_copied_embedding_is_dropped_and_the_targets_own_is_used(
    folder: Path, tmp_path: Path
) -> None:
    engine = vispec.load(folder, write_draft(tmp_path, embedding=table(folder)))
    draft = engine.draft
    assert isinstance(draft, EagleDraft)
    assert draft.embed_tokens is None
    session = draft.session(engine.target, 1, 64)
    theirs = engine.target.model.get_input_embeddings()
    assert session.embedding is theirs
    assert storage(session.embedding.weight) == storage(theirs.weight)
    owned = {storage(p) for p in draft.parameters()}
    assert storage(theirs.weight) not in owned
    assert not {name for name, _ in draft.named_parameters() if "embed" in name}


def test_a_copied_embedding_in_fewer_bits_is_a_copy_all_the_same(
    folder: Path, tmp_path: Path
) -> None:
    half = table(folder).to(torch.bfloat16).float()
    engine = vispec.load(folder, write_draft(tmp_path, embedding=half))
    assert engine.draft.embed_tokens is None  # type: ignore[union-attr]


def test_an_embedding_of_its_own_is_kept_and_used(folder: Path, tmp_path: Path) -> None:
    own = table(folder).clone()
    own[7] += 0.5
    engine = vispec.load(folder, write_draft(tmp_path, embedding=own))
    draft = engine.draft
    assert isinstance(draft, EagleDraft)
    assert draft.embed_tokens is not None
    assert torch.equal(draft.embed_tokens.weight, own)
    session = draft.session(engine.target, 1, 64)
    assert session.embedding is draft.embed_tokens
    plain = engine.generate("the cat", max_new_tokens=15, speculate=False)
    assert engine.generate("the cat", max_new_tokens=15).token_ids == plain.token_ids


def test_the_drafts_head_is_the_targets_own_module(folder: Path, tmp_path: Path) -> None:
    engine = vispec.load(folder, write_draft(tmp_path))
    draft = engine.draft
    assert isinstance(draft, EagleDraft)
    session = draft.session(engine.target, 1, 64)
    assert session.head is engine.target.model.get_output_embeddings()
    assert not {name for name, _ in draft.named_parameters() if "head" in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float64])
def test_target_and_draft_have_the_type_asked_for(
    folder: Path, tmp_path: Path, dtype: str | torch.dtype
) -> None:
    engine = vispec.load(folder, write_draft(tmp_path), dtype=dtype)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert engine.target.dtype == wanted
    assert engine.draft.dtype == wanted  # type: ignore[union-attr]
    result = engine.generate("the cat", [talking.picture(0)], max_new_tokens=9, ignore_eos=True)
    assert len(result.token_ids) == 9


def test_the_tree_comes_from_the_call_then_from_the_draft_then_from_us(
    folder: Path, tmp_path: Path
) -> None:
    write_draft(tmp_path / "with", tree={"size": 9, "depth": 2, "width": 3})
    write_draft(tmp_path / "without")
    asked = TreeShape(5, 2, 2)
    assert vispec.load(folder, tmp_path / "with", tree=asked).tree == asked
    assert vispec.load(folder, tmp_path / "with").tree == TreeShape(9, 2, 3)
    assert vispec.load(folder, tmp_path / "without").tree == TreeShape()


@pytest.mark.parametrize("tree", [{"size": 1}, {"nodes": 9}, {"size": "many"}, [9, 2, 3]])
def test_a_recommended_tree_that_is_none_is_told(folder: Path, tmp_path: Path, tree: Any) -> None:
    write_draft(tmp_path / "draft", tree=tree)
    with pytest.raises(CheckpointError, match="recommends a tree that is none"):
        vispec.load(folder, tmp_path / "draft")


# --- What does not fit ----------------------------------------------------------------------------


def test_a_draft_of_another_size_is_told_both_numbers(folder: Path, tmp_path: Path) -> None:
    other = write_draft(tmp_path, hidden=48)
    with pytest.raises(DraftMismatchError) as error:
        vispec.load(folder, other)
    assert "hidden size 48, target has 32" in str(error.value)
    assert "vocabulary" not in str(error.value)
    assert str(other) in str(error.value)
    assert str(folder) in str(error.value)


def test_a_draft_of_another_vocabulary_is_told_both_numbers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DraftMismatchError, match="vocabulary of 50, target has 48"):
        vispec.load(folder, write_draft(tmp_path, vocabulary=50))


def test_everything_that_does_not_fit_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DraftMismatchError) as error:
        vispec.load(folder, write_draft(tmp_path, hidden=48, vocabulary=50))
    assert len(error.value.mismatches) == 2


def test_a_draft_object_that_does_not_fit_is_refused_too(folder: Path) -> None:
    with pytest.raises(DraftMismatchError, match="48"):
        vispec.load(folder, EagleDraft(EagleConfig(48, 64, 4, 2, tiny.VOCAB)))


def test_missing_and_unexpected_tensors_of_a_draft_are_listed(folder: Path, tmp_path: Path) -> None:
    write_draft(tmp_path)
    loaded = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in loaded.items()}
    del tensors["img_fc.weight"], tensors["layers.0.mlp.down_proj.weight"]
    tensors["extra.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        vispec.load(folder, tmp_path)
    assert set(error.value.missing) == {"img_fc.weight", "layers.0.mlp.down_proj.weight"}
    assert error.value.unexpected == ("extra.weight",)


def test_a_target_given_as_a_draft_is_refused(folder: Path) -> None:
    with pytest.raises((CheckpointError, DraftMismatchError)) as error:
        vispec.load(folder, folder)
    assert str(folder) in str(error.value)


def test_a_draft_given_as_a_target_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a draft, not a target"):
        vispec.load(write_draft(tmp_path))


@pytest.mark.parametrize("model_type", ["blip-2", "", None])
def test_an_unknown_family_is_told_which_there_are(tmp_path: Path, model_type: str | None) -> None:
    config = {} if model_type is None else {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedFamilyError, match=r"supported are: .*\bllava,") as error:
        vispec.load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_wanted_attention_is_taken(folder: Path, attention: str) -> None:
    engine = vispec.load(folder, attn_implementation=attention)
    assert engine.target.text_config._attn_implementation == attention


def test_a_target_without_weights_says_so_before_anything_is_loaded(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="has no weights"):
        vispec.load(tmp_path)


def test_a_target_without_a_processor_is_a_checkpoint_error(tmp_path: Path) -> None:
    tiny.llava(torch.float32).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no processor that can be loaded"):
        vispec.load(tmp_path)


def test_a_target_cut_short_is_a_checkpoint_error(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError) as error:
        vispec.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_block_draft_is_read_but_not_drafted_with(folder: Path, tmp_path: Path) -> None:
    config = BlockConfig(tiny.HIDDEN, 64, 4, 2, tiny.VOCAB, tiny.VOCAB, 5, 3, (1, 2))
    block_format.write(BlockNetwork(config), tmp_path)
    with pytest.raises(CheckpointError, match=r"is a block draft \(dflash\)"):
        vispec.load(folder, tmp_path)


def test_an_eagle3_draft_from_a_folder_says_what_the_target_says(
    folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    config = Eagle3Config(tiny.HIDDEN, 64, 4, 2, tiny.VOCAB, 20, aux_layers=(0, 1, 2))
    eagle3_format.write(Eagle3Draft(config, torch.arange(0, 40, 2)), tmp_path)
    asked = {"images": [talking.picture(0)], "max_new_tokens": 12, "temperature": 0}
    drafted = vispec.load(folder, tmp_path, dtype=torch.float64).generate("the cat", **asked)
    assert drafted.token_ids == (
        vispec.load(folder, dtype=torch.float64).generate("the cat", **asked).token_ids
    )


@pytest.mark.parametrize(
    "option",
    ["revision", "token", "cache_dir", "subfolder", "use_safetensors", "ignore_mismatched_sizes"],
)
def test_options_that_only_the_weights_would_see_are_refused(folder: Path, option: str) -> None:
    with pytest.raises(CheckpointError, match=f"is not loaded with {option}="):
        vispec.load(folder, **{option: "x"})


PARTS = {"image_processor", "video_processor", "tokenizer"}


def shows_videos(name: str) -> bool:
    kind = getattr(transformers, name)
    # Mistral 3's is not there at all without torchvision; Gemma 4's hears as well.
    return type(kind).__name__ != "DummyObject" and set(kind.get_attributes()) == PARTS


SHOWS_VIDEOS = sorted(filter(shows_videos, {*map(PROCESSOR_MAPPING_NAMES.get, FAMILIES)} - {None}))


@pytest.mark.parametrize("name", SHOWS_VIDEOS)
def test_without_torchvision_a_processor_lacks_its_part_for_videos(
    name: str, tmp_path: Path
) -> None:
    if name == "SmolVLMProcessor" and importlib.util.find_spec("num2words") is None:
        pytest.skip("it needs num2words as well")
    marks = ["image", "video", "start_image", "end_image", "context_image"]
    tokenizer = copy.deepcopy(talking.tokenizer())
    tokenizer.add_tokens([f"<{mark}>" for mark in marks])
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = {f"{mark}_token": f"<{mark}>" for mark in marks}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    talking.processor().image_processor.save_pretrained(tmp_path)
    kind = getattr(transformers, name)
    processor = _without_videos(kind).from_pretrained(tmp_path)
    assert isinstance(processor, kind)
    assert processor.video_processor is None
    assert type(processor.image_processor) is type(AutoImageProcessor.from_pretrained(tmp_path))
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(VideoError, match="torchvision"):
        model_inputs(processor, "<video>", [], [frames], name="it", model_type="any")


def test_a_speculator_of_an_unknown_kind_is_named(tmp_path: Path, folder: Path) -> None:
    config = {"speculators_model_type": "peagle"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'peagle'.*\n.*eagle3, dflash and dspark"):
        vispec.load(folder, tmp_path)


# --- Models of text alone, and models that are changed --------------------------------------------


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """A Llama on disk, with a template that joins strings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(talking.tokenizer())
    tokenizer._processor_class = None  # it may have been saved with one before
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_text_model_is_loaded_and_asked(text_model: Path) -> None:
    engine = vispec.load(text_model, dtype=torch.float64)
    turns = [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}]
    found = engine.generate(turns, max_new_tokens=8, temperature=0)
    ids = engine.target.tokenizer("<s>the cat\n", return_tensors="pt", add_special_tokens=False)
    expected = engine.target.model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert found.token_ids == expected[0, ids["input_ids"].shape[1] :].tolist()
    again = engine.generate("the cat", max_new_tokens=8, temperature=0)
    assert again.token_ids == found.token_ids
    with pytest.raises(ConversationError, match="text model"):
        engine.generate("the cat", images=[talking.picture(0)])


def test_a_device_map_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, seen = transformers.AutoModelForImageTextToText, dict[str, Any]()
    own = loader.from_pretrained
    monkeypatch.setattr(loader, "from_pretrained", lambda *a, **k: seen.update(k) or own(*a, **k))
    placed = vispec.load(folder, device_map={"": "cpu"}, dtype=torch.float64)
    assert seen["device_map"] == {"": "cpu"}
    expected = vispec.load(folder, dtype=torch.float64)
    asked = {"images": [talking.picture(0)], "max_new_tokens": 8, "temperature": 0}
    assert placed.generate("the cat", **asked).token_ids == (
        expected.generate("the cat", **asked).token_ids
    )


def test_a_draft_that_is_of_no_use_is_told_of_once(folder: Path) -> None:
    draft, tree = tiny.Oracle(_Nothing(), hit=0.0), TreeShape(2, 1, 1)
    engine = vispec.load(folder, draft, dtype=torch.float64, tree=tree)
    asked = {"max_new_tokens": 80, "temperature": 0, "ignore_eos": True}
    with pytest.warns(UserWarning, match=r"'oracle' \d+ tokens were accepted in \d+ passes"):
        first = engine.generate("the cat", **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine.generate("the cat", **asked).token_ids == first.token_ids


def test_short_answers_add_up_until_they_say_something(folder: Path) -> None:
    draft = tiny.Oracle(_Nothing(), hit=0.0)
    draft.trained_for = "someone/else"  # type: ignore[attr-defined]
    engine = vispec.load(folder, draft, dtype=torch.float64, tree=TreeShape(2, 1, 1))
    asked = {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.generate("the cat", **asked)
    with pytest.warns(UserWarning, match="its checkpoint says 'someone/else'"):
        engine.generate("the cat", **asked)


class _Nothing(dict[str, list[int]]):
    def __missing__(self, key: str) -> list[int]:
        return [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draft_object_is_used_in_the_targets_numbers(folder: Path, dtype: torch.dtype) -> None:
    """And stays in its own."""
    draft = tiny.draft(dtype)
    engine = vispec.load(folder, draft, dtype=torch.float64)
    asked = {"images": [talking.picture(0)], "max_new_tokens": 12, "temperature": 0}
    plain = engine.generate("the cat", speculate=False, **asked)
    assert engine.generate("the cat", **asked).token_ids == plain.token_ids
    assert draft.dtype == dtype
    model = engine.target.model
    inputs = dict(engine.target.encode("the cat", [talking.picture(0)]).inputs)
    said = model.generate(
        **inputs, max_new_tokens=12, do_sample=False, custom_generate=vispec.speculative(draft)
    )
    assert said[0, inputs["input_ids"].shape[1] :].tolist() == plain.token_ids
    with pytest.raises(DraftMismatchError, match=r"draft\.to\(dtype"):
        Engine(engine.target, draft)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dtype": "float13"}, "bfloat16"),
        ({"device": "cudaa"}, "device"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": "many"}, "max_batch"),
        ({"tree": 5}, "TreeShape"),
        ({"sampled": (1, 1)}, "SampledShape"),
        ({"nonsense": 3}, "nonsense"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_at_once(folder: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(VispecError, match=word):
        vispec.load(folder, **options)


def test_what_is_no_target_is_named() -> None:
    with pytest.raises(CheckpointError, match="type int"):
        vispec.load(3)  # type: ignore[arg-type]


def test_a_narrow_eagle3_draft_drafts(folder: Path, tmp_path: Path) -> None:
    """Of another width than its target, as one that is published for Llama 3.3 70B."""
    torch.manual_seed(3)
    config = Eagle3Config(
        16, 24, 2, 1, tiny.VOCAB, 20, target_hidden_size=tiny.HIDDEN, aux_layers=(0, 1, 2)
    )
    draft = Eagle3Draft(config, torch.arange(0, 40, 2), torch.nn.Embedding(tiny.VOCAB, 16))
    eagle3_format.write(draft, tmp_path)
    engine = vispec.load(folder, tmp_path, dtype=torch.float64)
    for images in ([], [talking.picture(0)]):
        asked = {"images": images, "max_new_tokens": 12, "temperature": 0}
        plain = engine.generate("the cat", speculate=False, **asked)
        assert engine.generate("the cat", **asked).token_ids == plain.token_ids


def test_an_offloaded_embedding_leaves_a_draft_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = write_draft(tmp_path, embedding=table(folder))
    target = vispec.load(folder).target
    with torch.device("meta"):
        away = torch.nn.Embedding(*target.embedding.weight.shape)
    monkeypatch.setattr(type(target), "embedding", property(lambda _: away))
    loaded, _ = load_draft(draft, target)
    assert loaded.embed_tokens is not None


def test_a_text_model_with_the_tokenizer_of_another_is_loaded(text_model: Path) -> None:
    file = text_model / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"processor_class": "LlavaProcessor"})
    )
    assert vispec.load(text_model).generate("the cat", max_new_tokens=3).token_ids
