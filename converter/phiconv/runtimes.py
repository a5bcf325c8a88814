"""The programs that run what phiconv writes, as data: what each takes, and the command that starts it.

It stands this far down so that whoever names a runtime can look it up here: the command line, model cards,
reports.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RUNTIMES", "USUAL", "Runtime"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program.

    Attributes:
        name: What phiconv calls it.
        title: What its makers call it.
        format: The format that it opens, a key of ``phiconv_formats.FORMATS``.
        run: The command, for a shell; ``{path}`` stands for the output, ``{name}`` for a short name of it and
            ``{processor}`` for what OpenVINO calls the processor.
        install: How to get it.
        source: The page of its documentation that says so.
        cache_bytes: Of one number of the keys and values that it remembers, by default.
        own_copy: It copies the weights when it loads them, so that file and copy are in memory for a moment.
        windowed: It forgets positions beyond a model's sliding window.
        overhead: Megabytes beside weights, keys and values, with a prompt of 512 tokens; see ``measured``.
        measured: Whether ``benchmarks/running.py`` measured that; else it is that of a program like it.
    """

    name: str
    title: str
    format: str
    run: str
    install: str
    source: str
    cache_bytes: float = 2
    own_copy: bool = False
    windowed: bool = False
    overhead: int = 0
    measured: bool = False

    def command(self, path: str, name: str = "model", processor: str = "CPU") -> str:
        """The command that runs an output."""
        return self.run.format(path=path, name=name, processor=processor)


_OPENVINO_CODE = (
    "import openvino_genai as g; "
    "print(g.LLMPipeline('{path}', '{processor}').generate('Hello', max_new_tokens=100))"
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
        ),
        Runtime(
            "ollama",
            "Ollama",
            "gguf",
            'echo "FROM {path}" > Modelfile && ollama create {name} && ollama run {name}',
            "the installer of ollama.com",
            "https://docs.ollama.com/import",
        ),
        Runtime(
            "lmstudio",
            "LM Studio",
            "gguf",
            "lms import {path}",
            "the installer of lmstudio.ai",
            "https://lmstudio.ai/docs/app/advanced/import-model",
        ),
        Runtime(
            "mlx-lm",
            "mlx-lm",
            "mlx",
            "mlx_lm.chat --model {path}",
            "pip install mlx-lm",
            "https://github.com/ml-explore/mlx-lm#quick-start",
        ),
        Runtime(
            "onnxruntime-genai",
            "ONNX Runtime GenAI",
            "onnx",
            "python model-chat.py -m {path} -e follow_config",
            f"pip install onnxruntime-genai; model-chat.py is in {_GENAI_EXAMPLES}",
            _GENAI_EXAMPLES,
        ),
        Runtime(
            "transformers.js",
            "transformers.js",
            "onnx",
            "node -e \"import('@huggingface/transformers').then(async t => console.log(await (await "
            "t.pipeline('text-generation', '{path}'))('Hello')))\"",
            "npm install @huggingface/transformers",
            "https://huggingface.co/docs/transformers.js",
        ),
        Runtime(
            "openvino-genai",
            "OpenVINO GenAI",
            "openvino",
            f'python -c "{_OPENVINO_CODE}"',
            "pip install openvino-genai",
            "https://docs.openvino.ai/2025/openvino-workflow-generative/inference-with-genai.html",
        ),
        Runtime(
            "litert-lm",
            "LiteRT-LM",
            "litert",
            "litert-lm run {path}",
            "pip install litert-lm",
            "https://ai.google.dev/edge/litert-lm/cli",
        ),
        Runtime(
            "vllm",
            "vLLM",
            "compressed-tensors",
            "vllm serve {path}",
            "pip install vllm",
            "https://docs.vllm.ai/en/latest/features/quantization/",
        ),
    )
}
"""Every runtime, by name."""

USUAL: tuple[Runtime, ...] = tuple({r.format: r for r in reversed(RUNTIMES.values())}.values())[::-1]
"""One for each format: the first."""
