"""Describe a picture, speculatively.

python examples/describe.py [PICTURE]
"""

import sys
from importlib import resources

import vispec

photo = sys.argv[1] if len(sys.argv) > 1 else resources.files("vispec") / "assets/motocross.jpg"

vlm = vispec.load("embedded", draft="embedded")
result = vlm.generate("Describe the photo.", images=[str(photo)], max_new_tokens=64)

print(result.text)
print(f"{result.stats.acceptance_length:.2f} tokens per pass of the target")
