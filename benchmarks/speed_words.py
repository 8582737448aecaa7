"""What tasks, methods and speedups of `embedded_cpu.py` are called."""

from __future__ import annotations

TASKS = {
    "photo": "photograph",
    "caption": "scene, described",
    "vqa": "scene, a question",
    "read": "text, read",
}
"""Tasks as people call them, in the order of the tables."""
METHODS = {
    "generate": "generate",
    "generate-static": "generate, static cache, compiled",
    "generate-lookup": "generate, prompt lookup",
    "plain": "plain loop",
    "plain-compiled": "plain loop, compiled",
    "vispec-uncompiled": "ViSpec as it comes, not compiled",
    "vispec-advised": "ViSpec as it comes, compiled",
    "eagle-text": "EAGLE tree, trained on text",
    "eagle-text-blind": "EAGLE tree, kept from images",
    "eagle3": "EAGLE-3 tree, trained as ViSpec was",
    "eagle3-chain": "EAGLE-3 chain, trained as ViSpec was",
    "vispec": "ViSpec tree",
    "vispec-chain": "ViSpec chain",
}
"""Methods as the picture names them, from its top; compiled where nothing else is said."""
OURS = ("vispec-chain", "vispec", "vispec-advised", "vispec-uncompiled")
"""The methods that tables of speculation are about."""
OVER = {"generate": "`generate`", "fastest_plain": "the fastest plain way"}
"""What speedups are over, in words."""


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
