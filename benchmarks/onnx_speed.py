"""How fast ONNX Runtime GenAI runs a folder, as JSON: a process of its own for each measurement.

python benchmarks/onnx_speed.py FOLDER [--prompt 128] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def speeds(folder: Path, prompt: int, tokens: int) -> dict[str, float]:
    """Loads a model, reads a prompt and generates, greedily.

    Args:
        folder: As the converters write it.
        prompt: Tokens of the prompt.
        tokens: Tokens to generate.

    Returns:
        Seconds and tokens per second.
    """
    import onnxruntime_genai as genai

    started = time.perf_counter()
    model = genai.Model(str(folder))
    loaded = time.perf_counter() - started
    options = genai.GeneratorParams(model)
    # No end before the last token: a random model may find one anywhere.
    options.set_search_options(max_length=prompt + tokens, min_length=prompt + tokens, do_sample=False)
    for _ in range(2):  # the first time warms up
        generator = genai.Generator(model, options)
        started = time.perf_counter()
        generator.append_tokens([3 + i * 37 % 997 for i in range(prompt)])
        generator.generate_next_token()
        read = time.perf_counter()
        for _ in range(tokens - 1):
            generator.generate_next_token()
        ended = time.perf_counter()
    return {
        "load s": loaded,
        "prefill tokens/s": prompt / (read - started),
        "decode tokens/s": (tokens - 1) / (ended - read),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    print(json.dumps(speeds(**vars(parser.parse_args()))))
