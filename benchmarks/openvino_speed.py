"""How fast OpenVINO GenAI answers with models: the same prompt, greedily, in turns."""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def speeds(folders: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second of each model, medians of the rounds.

    One model after the other takes its turn in every round, so that what else the machine does hits all
    alike; the first round only warms up. Random weights know no end, so an end is not heeded.

    Args:
        folders: Models by what to call them; the first is what the others are compared with.
        options: With the fields ``prompt``, ``tokens`` (how many), ``rounds``, ``backend`` and ``threads``.
    """
    import openvino_genai as genai

    import openvino

    settings = {"ATTENTION_BACKEND": options.backend, "INFERENCE_NUM_THREADS": options.threads}
    pipelines = {name: genai.LLMPipeline(str(folder), "CPU", **settings) for name, folder in folders.items()}
    prompt = np.random.default_rng(0).integers(3, 2000, (1, options.prompt))
    ids = genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(np.ones_like(prompt)))
    config = genai.GenerationConfig(max_new_tokens=options.tokens, ignore_eos=True, do_sample=False)
    answers: dict[str, list[int]] = {}
    prefill: dict[str, list[float]] = {name: [] for name in folders}
    decode: dict[str, list[float]] = {name: [] for name in folders}
    cpu: dict[str, list[float]] = {name: [] for name in folders}
    for number in range(options.rounds + 1):
        for name in list(folders)[:: -1 if number % 2 else 1]:
            started = time.process_time()
            result = pipelines[name].generate(ids, config)
            answers[name] = list(result.tokens[0])
            if number:
                cpu[name].append(time.process_time() - started)
                prefill[name].append(options.prompt * 1000 / result.perf_metrics.get_ttft().mean)
                decode[name].append(1000 / result.perf_metrics.get_tpot().mean)
    del pipelines
    gc.collect()
    first = next(iter(answers.values()))
    return [
        {
            "in OpenVINO GenAI": name,
            "prefill tokens/s": statistics.median(prefill[name]),
            "decode tokens/s": statistics.median(decode[name]),
            "least": min(decode[name]),
            "most": max(decode[name]),
            "CPU s an answer": statistics.median(cpu[name]),
            "same tokens": sum(a == b for a, b in zip(first, answers[name], strict=True)),
        }
        for name in folders
    ]
