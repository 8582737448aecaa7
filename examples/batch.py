"""Answer several questions in one batch; each gives what it would give alone.

python examples/batch.py
"""

import vispec
from vispec.training.scenes import scene

vlm = vispec.load("embedded", draft="embedded", max_batch=4)
requests = [
    vispec.Request(sample.question, [sample.image], vispec.Sampling(max_new_tokens=48, seed=seed))
    for seed in range(4)
    for sample in [scene(seed)]
]
for request, result in zip(requests, vlm.generate(requests), strict=True):
    print(f"{request.prompt} -> {result.text}")
