"""What somebody runs models on, as data: the format, recipe and options that suit it, for ``--for NAME``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from phiconv.errors import UsageError
from phiconv.runtimes import RUNTIMES
from phiconv.spelling import did_you_mean, folded, known_as
from phiconv_formats import FORMATS, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from phiconv.runtimes import Runtime

__all__ = ["DEVICES", "Device", "find_device", "fitted"]


_NONE: Mapping[str, str | int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Device:
    """A device or a program.

    Attributes:
        name: What ``--for`` takes.
        title: What it is.
        runs: What runs the output, a key of `phiconv.runtimes.RUNTIMES`.
        recipes: Recipes that suit it, the usual one first; more of the format do unless ``only`` is set.
        source: The page of its documentation that says so.
        options: Fields of `phiconv.recipes.Choices` and what they must be, in the order of the command line.
        only: Other recipes do not run there.
        half_cache: Its cache has numbers of 16 bits, also where that of the runtime has others by default.
        processor: What OpenVINO calls it; "" where that does not matter.
        aliases: What else people call it.
    """

    name: str
    title: str
    runs: str
    recipes: tuple[str, ...]
    source: str
    options: Mapping[str, str | int] = field(default_factory=lambda: _NONE)
    only: bool = False
    half_cache: bool = False
    processor: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def runtime(self) -> Runtime:
        """What runs the output."""
        runtime = RUNTIMES[self.runs]
        return replace(runtime, cache_bytes=2) if self.half_cache else runtime

    @property
    def format(self) -> str:
        """The format that it takes."""
        return self.runtime.format


_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
_GENAI = "https://onnxruntime.ai/docs/genai"
_OPENVINO = "https://docs.openvino.ai/2025/openvino-workflow-generative/inference-with-genai"
_LITERT = "https://ai.google.dev/edge/litert-lm"
_VLLM = "https://docs.vllm.ai/en/latest"

DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        Device("ollama", "Ollama", "ollama", ("Q4_K_M",), "https://docs.ollama.com/import"),
        Device(
            "lmstudio",
            "LM Studio, on any computer",
            "lmstudio",
            ("Q4_K_M",),
            "https://lmstudio.ai/docs/app/advanced/import-model",
            aliases=("lm-studio", "lms"),
        ),
        Device(
            "llama.cpp",
            "llama.cpp and programs built on it",
            "llama.cpp",
            ("Q4_K_M",),
            f"{_LLAMA_CPP}/blob/master/tools/quantize/README.md",
            aliases=(
                "llama-cpp",
                "llamacpp",
                "koboldcpp",
                "jan",
                "gpt4all",
                "cpu",
                "amd-gpu",
                "vulkan",
            ),
        ),
        Device(
            "mac",
            "a Mac (M1 and later)",
            "mlx-lm",
            ("4bit",),
            "https://github.com/ml-explore/mlx-lm",
            aliases=("apple", "apple-silicon", "macos", "macbook", "mlx"),
        ),
        Device(
            "nvidia",
            "one NVIDIA graphics card",
            "llama.cpp",
            ("Q4_K_M",),
            f"{_LLAMA_CPP}/blob/master/docs/build.md#cuda",
            aliases=("cuda", "rtx", "geforce"),
        ),
        Device(
            "vllm",
            "vLLM or SGLang on graphics cards",
            "vllm",
            ("w4a16",),
            f"{_VLLM}/features/quantization/",
            aliases=("server", "server-gpu", "sglang"),
        ),
        Device(
            "vllm-fp8",
            "the same on Ada, Hopper and later",
            "vllm",
            ("fp8-dynamic",),
            f"{_VLLM}/features/quantization/llm_compressor/fp8/",
            only=True,
            aliases=("fp8", "hopper", "h100", "h200"),
        ),
        Device(
            "server-cpu",
            "vLLM on a server's processors",
            "vllm",
            ("w8a8",),
            f"{_VLLM}/getting_started/installation/cpu/",
            aliases=("vllm-cpu", "xeon", "epyc"),
        ),
        Device(
            "windows-npu",
            "the NPU of a Snapdragon, under Windows",
            "onnxruntime-genai",
            ("int4",),
            f"{_GENAI}/howto/build-models-for-snapdragon.html",
            {"target": "qnn"},
            only=True,
            half_cache=True,
            aliases=("snapdragon", "qnn", "qualcomm", "hexagon", "npu"),
        ),
        Device(
            "copilot-pc",
            "a Copilot+ PC with a Snapdragon",
            "onnxruntime-genai",
            ("int4",),
            "https://learn.microsoft.com/windows/ai/npu-devices/",
            {"target": "qnn"},
            only=True,
            half_cache=True,
            aliases=("copilot", "copilot-plus-pc", "copilot+pc"),
        ),
        Device(
            "directml",
            "any graphics card under Windows",
            "onnxruntime-genai",
            ("int4",),
            f"{_GENAI}/howto/install.html",
            {"target": "dml"},
            half_cache=True,
            aliases=("dml", "windows-gpu", "windows"),
        ),
        Device(
            "onnxruntime",
            "ONNX Runtime GenAI on a processor",
            "onnxruntime-genai",
            ("int4",),
            f"{_GENAI}/howto/install.html",
            aliases=("onnx", "ort", "genai", "windows-cpu"),
        ),
        Device(
            "intel-cpu",
            "an Intel processor",
            "openvino-genai",
            ("int4-asym",),
            f"{_OPENVINO}.html",
            processor="CPU",
            aliases=("intel", "openvino"),
        ),
        Device(
            "intel-gpu",
            "Intel graphics: Arc, Iris Xe",
            "openvino-genai",
            ("int4-asym",),
            f"{_OPENVINO}.html",
            processor="GPU",
            aliases=("arc", "iris"),
        ),
        Device(
            "intel-npu",
            "the NPU of an Intel Core Ultra",
            "openvino-genai",
            ("int4-sym", "int4-sym-channel"),
            f"{_OPENVINO}/inference-with-genai-on-npu.html",
            only=True,
            processor="NPU",
            aliases=("core-ultra", "ai-boost"),
        ),
        Device(
            "android",
            "an Android phone or tablet",
            "litert-lm",
            ("wi4b32",),
            f"{_LITERT}/android",
            aliases=("phone", "pixel", "samsung"),
        ),
        Device(
            "iphone",
            "an iPhone or iPad",
            "litert-lm",
            ("wi4b32",),
            f"{_LITERT}/overview",
            aliases=("ios", "ipad"),
        ),
        Device(
            "raspberry-pi",
            "a Raspberry Pi",
            "litert-lm",
            ("wi4b32",),
            f"{_LITERT}/cli",
            aliases=("raspberry", "pi", "rpi"),
        ),
        Device(
            "browser",
            "a web page (transformers.js)",
            "transformers.js",
            ("int4",),
            "https://huggingface.co/docs/transformers.js/guides/webgpu",
            {"target": "webgpu", "layout": "transformers.js"},
            only=True,
            aliases=("web", "webgpu", "transformers.js", "chrome"),
        ),
    )
}
"""Every device, by name."""


def find_device(name: str) -> Device:
    """A device by its name or an alias; case does not matter, and "_" is "-".

    Raises:
        UsageError: There is none of this name.
    """
    aliases = {alias: device.name for device in DEVICES.values() for alias in device.aliases}
    known = known_as(name, DEVICES, aliases)
    if known is None:
        hint = did_you_mean(name, [*DEVICES, *aliases], "phiconv choose --for list shows them all")
        raise UsageError(f"--for {name}: unknown device", hint=hint)
    return DEVICES[known]


def fitted(
    device: Device, destination: Path, to: str | None, quant: str | None, choices: Mapping[str, Any]
) -> tuple[str, str | None, dict[str, Any]]:
    """What a device wants where the user has not said otherwise.

    Args:
        device: The device.
        destination: Where the output goes; its suffix may name a format.
        to: The format, if the user names one.
        quant: The recipe or preset, likewise.
        choices: The fields of `phiconv.recipes.Choices` that the user may have set.

    Returns:
        Format, recipe (None where a size decides) and choices.

    Raises:
        UsageError: The user wants what the device does not take.
    """

    def contradiction(option: str, given: object, needed: object) -> UsageError:
        return UsageError(
            f"--for {device.name} needs {option} {needed}, and {option} says {given}",
            hint="leave one of them out",
        )

    named = to if to is None else find_target(Path("folder"), to).name
    if named not in {None, device.format}:
        raise contradiction("--to", to, device.format)
    suffixed = {s: f.name for f in FORMATS.values() if f.writer for s in f.file_suffixes}
    said = next((name for s, name in suffixed.items() if destination.name.lower().endswith(s)), device.format)
    if said != device.format:
        raise UsageError(
            f"--for {device.name} writes {device.format}, and this name says {said}",
            path=destination,
            hint="give another name, or leave out --for",
        )
    for name, needed in device.options.items():
        given = choices.get(name)
        if given is not None and folded(str(given)) != folded(str(needed)):
            raise contradiction(f"--{name}", given, needed)
    sized = choices.get("target_size") or choices.get("bits_per_weight")
    recipe = quant or (None if sized else device.recipes[0])
    return device.format, recipe, {**choices, **device.options}
