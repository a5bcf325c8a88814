"""The programs that run what phiconv writes, as data: what each takes, and the command that starts it.

It stands this far down so that whoever names a runtime can look it up here: the command line, model cards,
reports.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, replace

__all__ = ["RUNTIMES", "USUAL", "WITH_MODELFILE", "Runtime", "placed", "quoted"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program.

    Attributes:
        name: What phiconv calls it.
        title: What its makers call it.
        format: The format that it opens, a key of ``phiconv_formats.FORMATS``.
        run: The command, for a shell; ``{path}`` stands for the output, as a word by itself, ``{name}`` for a
            short name of it and ``{processor}`` for what OpenVINO calls the processor.
        install: How to get it.
        source: The page of its documentation that says so.
        cache_bytes: Of one number of the keys and values that it remembers, by default.
        weights: Bytes of memory for each byte of the files: more than 1 where it lays them out anew.
        overhead: Megabytes beside weights, keys and values, with a prompt of 512 tokens and a vocabulary of
            32064.
        others: Other formats that it opens with the same command.
        in_parts: It opens an output whose weights are in several files.
        windowed: It forgets positions beyond a model's sliding window.
        measured: The release that ``benchmarks/running.py`` measured these two with; "" where they are taken
            from a program like it, or left out.
    """

    name: str
    title: str
    format: str
    run: str
    install: str
    source: str
    cache_bytes: float = 2
    weights: float = 1
    overhead: int = 0
    others: tuple[str, ...] = ()
    in_parts: bool = True
    windowed: bool = False
    measured: str = ""

    def command(self, path: str, name: str = "model", processor: str = "CPU") -> str:
        """The command that runs an output, for this system's shell.

        A bare name gets a ``./``, lest it be taken for one on a hub, or for an option.
        """
        return self.run.format(path=quoted(placed(path)), name=name, processor=processor)


def placed(path: str) -> str:
    """A path that nobody takes for anything else."""
    return path if "/" in path or "\\" in path else f"./{path}"


def quoted(word: str) -> str:
    """A word as it is written in a command, for this system's shell."""
    if os.name == "nt":  # no name of a file has a quotation mark there
        return word if re.fullmatch(r"[\w.,:/\\+-]+", word) else f'"{word}"'
    return shlex.quote(word)


_OPENVINO_CODE = (
    "import sys, openvino_genai as g; "
    "print(g.LLMPipeline(sys.argv[1], '{processor}').generate('Hello', max_new_tokens=100))"
)
_GENAI_EXAMPLES = "https://github.com/microsoft/onnxruntime-genai/tree/main/examples/python"


RUNTIMES: dict[str, Runtime] = {
    r.name: r
    for r in (
        Runtime(
            "llama.cpp",
            "llama.cpp",
            "gguf",
            "llama-cli -m {path}",
            "brew install llama.cpp, winget install llama.cpp, or a release of the project",
            "https://github.com/ggml-org/llama.cpp#quick-start",
            overhead=95,
            measured="xllamacpp 2026.10",
        ),
        Runtime(
            "ollama",
            "Ollama",
            "gguf",
            "echo FROM {path} > Modelfile && ollama create {name} && ollama run {name}",
            "the installer of ollama.com",
            "https://docs.ollama.com/import",
            overhead=95,
            in_parts=False,
        ),
        Runtime(
            "lmstudio",
            "LM Studio",
            "gguf",
            "lms import {path}",
            "the installer of lmstudio.ai",
            "https://lmstudio.ai/docs/app/advanced/import-model",
            overhead=95,
            in_parts=False,
        ),
        Runtime(
            "mlx-lm",
            "mlx-lm",
            "mlx",
            "mlx_lm.chat --model {path}",
            "pip install mlx-lm",
            "https://github.com/ml-explore/mlx-lm#quick-start",
            weights=1.04,
            overhead=90,
            measured="mlx-lm 0.32",
        ),
        Runtime(
            "onnxruntime-genai",
            "ONNX Runtime GenAI",
            "onnx",
            "python model-chat.py -m {path} -e follow_config",
            f"pip install onnxruntime-genai; model-chat.py and common.py are in {_GENAI_EXAMPLES}",
            _GENAI_EXAMPLES,
            cache_bytes=4,
            weights=1.18,
            overhead=150,
            measured="onnxruntime-genai 0.18",
        ),
        Runtime(
            "transformers.js",
            "transformers.js",
            "onnx",
            "node -e \"import('@huggingface/transformers').then(async t => {{ "
            "const {{ dir, base }} = path.parse(path.resolve(process.argv[1])); t.env.localModelPath = dir; "
            "console.log(await (await t.pipeline('text-generation', base))('Hello')) }})\" {path}",
            "npm install @huggingface/transformers",
            "https://huggingface.co/docs/transformers.js",
        ),
        Runtime(
            "openvino-genai",
            "OpenVINO GenAI",
            "openvino",
            f'python -c "{_OPENVINO_CODE}" {{path}}',
            "pip install openvino-genai",
            "https://docs.openvino.ai/2025/openvino-workflow-generative/inference-with-genai.html",
            cache_bytes=1,
            weights=1.3,
            overhead=50,
            measured="openvino-genai 2026.4",
        ),
        Runtime(
            "litert-lm",
            "LiteRT-LM",
            "litert",
            "litert-lm run {path}",
            "pip install litert-lm",
            "https://ai.google.dev/edge/litert-lm/cli",
            weights=1.11,
            overhead=180,
            measured="litert-lm-api 0.18",
        ),
        Runtime(
            "vllm",
            "vLLM",
            "compressed-tensors",
            "vllm serve {path}",
            "pip install vllm",
            "https://docs.vllm.ai/en/latest/features/quantization/",
            others=("gptq", "awq"),
            windowed=True,
        ),
    )
}
"""Every runtime, by name."""

WITH_MODELFILE = replace(
    RUNTIMES["ollama"], run="ollama create {name} -f {path} && ollama run {name}", in_parts=False
)
"""Ollama, by the Modelfile that stands beside a GGUF (``--modelfile``)."""

USUAL: tuple[Runtime, ...] = tuple({r.format: r for r in reversed(RUNTIMES.values())}.values())[::-1]
"""One for each format: the first."""
