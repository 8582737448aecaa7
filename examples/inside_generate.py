"""Speculate inside Hugging Face's own `generate`: one argument more, the same text.

python examples/inside_generate.py
"""

from transformers import AutoModelForImageTextToText, AutoProcessor

import vispec
from vispec.checkpoints.files import EMBEDDED
from vispec.training.scenes import scene

model = AutoModelForImageTextToText.from_pretrained(EMBEDDED / "target")
processor = AutoProcessor.from_pretrained(EMBEDDED / "target")

sample = scene(101, "vqa")
question = {"type": "text", "text": sample.question}
chat = [{"role": "user", "content": [{"type": "image"}, question]}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(images=sample.image, text=text, return_tensors="pt")

plain = model.generate(**inputs, max_new_tokens=48)
fast = model.generate(
    **inputs, max_new_tokens=48, custom_generate=vispec.speculative(EMBEDDED / "draft")
)
print(processor.decode(fast[0], skip_special_tokens=True))
print("same text:", bool((plain == fast).all()) if plain.shape == fast.shape else False)
