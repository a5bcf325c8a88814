"""Run by a Python that has transformers and compressed-tensors: the last logits of some prompts, as .npy.

python transformers_logits.py FOLDER OUT.npy
"""

from __future__ import annotations

import sys

import numpy as np

from vllm_logits import PROMPTS


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0, -1].float().numpy() for ids in PROMPTS]
    np.save(sys.argv[2], np.stack(rows))


if __name__ == "__main__":
    main()
