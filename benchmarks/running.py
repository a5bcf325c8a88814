#!/usr/bin/env python3
"""How much memory runtimes take for a model: peak resident memory beside the file's size and its cache.

    python benchmarks/running.py [--layers 2,6] [--prompt 512] [--context 1024] [--runtimes llama.cpp,mlx-lm]

Random models of Phi-3.5-mini's widths, with so many layers each, are converted for each runtime, which then
reads a prompt and answers in a process of its own, on the processor. Anonymous memory (no file's) less
the cache of keys and values is fitted by ``base + share * file``. What is mapped beside it is the file, where
the runtime uses it in place, and the runtime's own libraries. From both come ``weights`` and ``overhead`` of
`phiconv.runtimes`; docs/choose.md says how. A runtime that is not installed is skipped, and said to be.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# The folder of this script has modules of the same names as libraries.
sys.path[:] = [
    str(ROOT),
    str(ROOT / "tests" / "helpers"),
    *filter(lambda p: p != str(ROOT / "benchmarks"), sys.path),
]

from benchmarks.job import measure  # noqa: E402 - the folder is a package only from here on
from benchmarks.printing import show  # noqa: E402
from benchmarks.weights import write_model  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER = 8  # tokens
_MIB = 1.048576  # megabytes


def _ids(prompt: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 2000, prompt)


def llama_cpp(path: Path, prompt: int, context: int) -> None:
    """llama.cpp with its own choices for cache and batches."""
    from llama_runtime import Runtime, open_llama

    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    llama = open_llama(ctypes.CDLL(str(next(folder.glob("xllamacpp*.so")))))
    runtime = Runtime(llama, path)
    params = llama.llama_context_default_params()
    params.n_ctx = context
    state = llama.llama_init_from_model(runtime.model, params)
    batch = llama.llama_batch_init(prompt, 0, 1)
    for i, token in enumerate(_ids(prompt)):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, int(i == prompt - 1)
    batch.n_tokens = prompt
    assert llama.llama_decode(state, batch) == 0


def mlx_lm(path: Path, prompt: int, context: int) -> None:  # noqa: ARG001 - its cache grows
    """mlx-lm on the processor."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    mx.set_default_device(mx.cpu)
    model, _ = load(str(path))
    for _ in generate_step(mx.array(_ids(prompt)), model, max_tokens=_ANSWER):
        pass


def onnxruntime_genai(path: Path, prompt: int, context: int) -> None:
    """ONNX Runtime GenAI, whose cache is as long as the longest text."""
    import onnxruntime_genai as genai

    model = genai.Model(str(path))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=context, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(_ids(prompt).astype(np.int32))
    for _ in range(_ANSWER):
        generator.generate_next_token()


def openvino_genai(path: Path, prompt: int, context: int) -> None:  # noqa: ARG001 - its cache grows
    """OpenVINO GenAI."""
    import openvino_genai as genai

    import openvino

    pipeline = genai.LLMPipeline(str(path), "CPU", ATTENTION_BACKEND="SDPA")
    ids = _ids(prompt)[None]
    tokens = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    pipeline.generate(tokens, genai.GenerationConfig(max_new_tokens=_ANSWER, ignore_eos=True))


def litert_lm(path: Path, prompt: int, context: int) -> None:  # noqa: ARG001 - its room is in the file
    """LiteRT-LM; a word is about two tokens."""
    import litert_lm as runtime

    runtime.set_min_log_severity(runtime.LogSeverity.FATAL)
    backend = runtime.Backend.CPU(thread_count=2)
    engine = runtime.Engine(os.fspath(path), backend, cache_dir=os.fspath(path.parent))
    session = engine.create_session(
        apply_prompt_template=False,
        sampler_config=runtime.SamplerConfig(top_k=1),
        max_output_tokens=_ANSWER,
    )
    session.run_prefill(["a list of words, " * (prompt // 8)])
    session.run_decode()
    session.close()
    engine.close()


RUNS: dict[str, tuple[Callable[[Path, int, int], None], str, str, str]] = {
    "llama.cpp": (llama_cpp, "xllamacpp", "gguf", "Q4_K_M"),
    "mlx-lm": (mlx_lm, "mlx_lm", "mlx", "4bit"),
    "onnxruntime-genai": (onnxruntime_genai, "onnxruntime_genai", "onnx", "int4"),
    "openvino-genai": (openvino_genai, "openvino_genai", "openvino", "int4-asym"),
    "litert-lm": (litert_lm, "litert_lm", "litert", "wi4b32"),
}
"""By runtime: what runs it, the module that must be there, format and recipe."""


def row(name: str, model: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Converts for a runtime and lets it answer, with a short cache and with a long one."""
    import phiconv
    from phiconv.guide.memory import cache_size, running_size
    from phiconv.runtimes import RUNTIMES

    _, _, target, recipe = RUNS[name]
    suffix = {"gguf": ".gguf", "litert": ".litertlm"}.get(target, "")
    out = scratch / f"{name.replace('.', '-')}-{model.name}{suffix}"
    choices = phiconv.Choices(context=options.context if target == "litert" else None)
    result = phiconv.convert(model, out, to=target, quant=recipe, choices=choices, receipt=False)
    hp = result.plan.model.hyperparameters
    assert hp is not None
    filled = options.context if target in {"gguf", "onnx", "litert"} else options.prompt + _ANSWER
    cache = cache_size(hp, RUNTIMES[name], filled)
    command = [sys.executable, __file__, "--child", name, "--path", out]
    cost = measure([*command, "--prompt", str(options.prompt), "--context", str(options.context)])
    anonymous, resident = ((cost.anonymous or 0) * _MIB, (cost.resident or 0) * _MIB)
    return {
        "runtime": name,
        "recipe": recipe,
        "file MB": result.size / 1e6,
        "cache MB": cache / 1e6,
        "anonymous MB": anonymous,
        "mapped MB": resident - anonymous,
        "said MB": running_size(result.size, hp, RUNTIMES[name], filled) / 1e6,
    }


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of one runtime come to: megabytes for a megabyte of the file, and those beside."""
    files = [row["file MB"] for row in rows]
    taken = [row["anonymous MB"] - row["cache MB"] for row in rows]
    share, base = np.polyfit(files, taken, 1)
    return {"runtime": rows[0]["runtime"], "anonymous MB a MB": float(share), "and MB": float(base)}


def main() -> None:
    """Measures all runtimes that are installed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", default="2,6", help="of the random models")
    parser.add_argument("--prompt", type=int, default=512, help="tokens that are read")
    parser.add_argument("--context", type=int, default=1024, help="tokens that there is room for")
    parser.add_argument("--runtimes", default=",".join(RUNS))
    parser.add_argument("--scratch", type=Path, help="where temporary files go")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        RUNS[options.child][0](options.path, options.prompt, options.context)
        return
    with tempfile.TemporaryDirectory(prefix="phiconv-bench-", dir=options.scratch) as name:
        scratch = Path(name)
        counts = [int(count) for count in options.layers.split(",")]
        models = [write_model(scratch / f"model-{count}", count) for count in counts]
        names = options.runtimes.split(",")
        found = {name: importlib.util.find_spec(RUNS[name][1]) for name in names}
        rows = {n: [row(n, model, scratch, options) for model in models] for n in names if found[n]}
    result: dict[str, Any] = {"skipped": {name: "not installed" for name in names if not found[name]}}
    result["steps"] = [each for some in rows.values() for each in some]
    result["ratios"] = [fitted(some) for some in rows.values() if len(some) > 1]
    show(result, as_json=options.json)


if __name__ == "__main__":
    main()
