"""Show an answer while it is written, what the draft contributed in brackets.

python examples/stream.py
"""

import vispec
from vispec.training.scenes import scene

sample = scene(101, "vqa")
vlm = vispec.load("embedded", draft="embedded")
stream = vlm.stream(sample.question, images=[sample.image], max_new_tokens=48)
for piece in stream:
    print(f"[{piece.text}]" if piece.drafted else piece.text, end="", flush=True)
print()
print(stream.result.finish_reason, stream.result.stats.accepted_by_depth)
