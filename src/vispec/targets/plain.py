"""Families whose decoder is told one position a token and whose images lie in one piece.

Nothing of what `Target` does needs another way for them.
"""

from __future__ import annotations

from vispec.targets.base import Target


class PlainTarget(Target):
    """Text models, the LLaVA line, Mistral 3 and Pixtral, and Gemma.

    Gemma's layers see a window of the text, and its images see themselves whole: both are facts of
    the masks that the model makes for a prompt, and of the kinds that its layers state.
    """

    model_types = (
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma3_text",
        "llava",  # arXiv 2310.03744
        "llava_next",
        "llava_next_video",
        "llava_onevision",  # arXiv 2408.03326
        "mistral3",
        "gemma3",  # arXiv 2503.19786
    )
