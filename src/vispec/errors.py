"""Every error that vispec raises on purpose. Each message names the offending value and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence


class VispecError(Exception):
    """The root of the family: a problem that the caller can fix, told in full by its message."""

    def __reduce__(self) -> tuple[object, ...]:
        # The constructors take fields, not a message, and errors cross process boundaries.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    kind: type[VispecError], args: tuple[object, ...], fields: dict[str, object]
) -> VispecError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class ImageError(VispecError, ValueError):
    """An image that cannot be used, or images that do not match the conversation.

    Attributes:
        source: the path, or what was given in place of one ("the 37 bytes given").
        reason: what is wrong with it.
    """

    def __init__(self, message: str, *, source: str = "", reason: str = "") -> None:
        self.source = source
        self.reason = reason or message
        super().__init__(message)

    @classmethod
    def unusable(cls, source: str, reason: str, fix: str) -> ImageError:
        """An error of the form "cannot use SOURCE as an image: REASON; FIX"."""
        return cls(
            f"cannot use {source} as an image: {reason}; {fix}", source=source, reason=reason
        )


class VideoError(VispecError, ValueError):
    """A video that cannot be used.

    Attributes:
        source: the path, or what was given in place of one.
        reason: what is wrong with it.
    """

    def __init__(self, source: str, reason: str, fix: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"cannot use {source} as a video: {reason}; {fix}")


class ConversationError(VispecError, ValueError):
    """Messages that are in no known format, or do not go with their images.

    Attributes:
        problem: what is wrong, and where.
    """

    def __init__(self, problem: str, fix: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; {fix}" if fix else problem)


class CheckpointError(VispecError, ValueError):
    """A checkpoint whose files or tensors are not what its configuration promises.

    Attributes:
        where: the folder or hub name.
        missing: tensors, or files, that should be there.
        unexpected: tensors that should not.
        misshapen: sentences "name: found [..], expected [..]".
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        problem: str = "",
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshapen: Iterable[str] = (),
        fix: str = "",
    ) -> None:
        self.where = os.fspath(where)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)
        lists = [
            f"{title} ({len(names)}):" + "".join(f"\n  {name}" for name in names)
            for title, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of the wrong shape", self.misshapen),
            )
            if names
        ]
        head = f"checkpoint '{self.where}' {problem or 'does not hold the expected tensors'}"
        super().__init__("\n".join([head, *lists, *([fix] if fix else [])]))

    @classmethod
    def tensors(
        cls,
        where: str | os.PathLike[str],
        *,
        found: Mapping[str, Sequence[int]],
        expected: Mapping[str, Sequence[int]],
        fix: str = "",
    ) -> CheckpointError | None:
        """The error for a difference between two lists of tensor shapes, or None where they agree.

        Args:
            where: the checkpoint.
            found: name to shape, as read from its files.
            expected: name to shape, as its configuration asks for.
            fix: what the reader can do.
        """
        misshapen = [
            f"{name}: found {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ]
        missing = [name for name in expected if name not in found]
        unexpected = [name for name in found if name not in expected]
        if not (misshapen or missing or unexpected):
            return None
        return cls(where, missing=missing, unexpected=unexpected, misshapen=misshapen, fix=fix)

    @classmethod
    def unavailable(
        cls, where: str | os.PathLike[str], files: Iterable[str], reason: str = ""
    ) -> CheckpointError:
        """A checkpoint that is neither a folder here nor, right now, to be had from the hub."""
        because = f" ({reason})" if reason else ""
        return cls(
            where,
            f"is not a folder on this machine and could not be fetched from the hub{because}",
            missing=files,
            fix="Give the path of a folder that holds these files, or connect and try again"
            " (offline mode is on where HF_HUB_OFFLINE is set).",
        )


class DraftMismatchError(VispecError, ValueError):
    """A draft that was trained for another target.

    Attributes:
        draft: its name.
        target: the target's name.
        mismatches: one sentence for everything that does not fit.
    """

    def __init__(self, draft: str, target: str, mismatches: Iterable[str], fix: str = "") -> None:
        self.draft = draft
        self.target = target
        self.mismatches = tuple(mismatches)
        fix = fix or (
            "This draft was trained for another model: pass the draft that belongs to this target, "
            "or draft=None for plain decoding."
        )
        lines = "".join(f"\n  {sentence}" for sentence in self.mismatches)
        super().__init__(f"draft '{draft}' does not fit target '{target}':{lines}\n{fix}")


class UnsupportedFamilyError(VispecError, ValueError):
    """A model whose family has no file in `vispec.targets`.

    Attributes:
        model_type: what its `config.json` says.
        supported: the model types that work.
    """

    def __init__(self, model_type: str | None, supported: Iterable[str], where: str = "") -> None:
        self.model_type = model_type
        self.supported = tuple(sorted(supported))
        of = f" of '{where}'" if where else ""
        kind = f"model type '{model_type}'{of}" if model_type else f"the model{of} (no model_type)"
        super().__init__(
            f"{kind} is not supported; supported are: {', '.join(self.supported) or 'none'}. "
            "To add a family, write one file in src/vispec/targets "
            "(CONTRIBUTING.md, 'Adding a model family')."
        )


class PromptTooLongError(VispecError, ValueError):
    """A prompt that leaves no room for an answer.

    Attributes:
        length: tokens of the prompt, image tokens included.
        context: tokens the target can hold.
    """

    def __init__(self, length: int, context: int, image_tokens: int = 0) -> None:
        self.length = length
        self.context = context
        images = f" ({image_tokens} of them for images)" if image_tokens else ""
        fix = "shorten the text" + (" or give fewer or smaller images" if image_tokens else "")
        super().__init__(
            f"the prompt takes {length} tokens{images} and the target's context holds {context}, "
            f"which leaves no room for an answer; {fix}"
        )


class SamplingError(VispecError, ValueError):
    """A generation setting outside its range.

    Attributes:
        name: the setting, as the API spells it.
        value: what was given.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name = name
        self.value = value
        super().__init__(f"{name} is {value!r}; it must be {allowed}")


class UnsupportedLogitsProcessorError(VispecError, ValueError):
    """A logits processor that cannot be applied to the nodes of a tree.

    Attributes:
        name: its class.
    """

    def __init__(self, name: str, reason: str, fix: str = "") -> None:
        self.name = name
        fix = fix or "use a chain draft (tree width 1) or speculate=False with it"
        super().__init__(f"logits processor {name} cannot be used on a tree: {reason}; {fix}")


class SettingsError(VispecError, ValueError):
    """A recipe or configuration that says what there is not, or not what it must.

    Attributes:
        problem: what is wrong, and where.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem = problem
        super().__init__(f"{problem}. {fix}" if fix else problem)


class DivergedError(VispecError, FloatingPointError, ValueError):
    """A training whose loss or gradient is no number any more."""
