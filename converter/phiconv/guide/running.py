"""The command that runs what a plan writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from phiconv.ir import FloatEncoding
from phiconv.runtimes import RUNTIMES, USUAL, WITH_MODELFILE

if TYPE_CHECKING:
    from phiconv.conversion.plans import Plan
    from phiconv.guide.devices import Device
    from phiconv.runtimes import Runtime

__all__ = ["run_command"]

_IN_FILES = ("gguf", "litert")
"""Formats whose runtimes take a file; those of others take its folder."""

_OPENED = {
    "gguf": r".*\.gguf",
    "litert": r".*\.litertlm",  # no .tflite, which has no tokenizer
    "openvino": r"openvino_model\.xml",
}
"""What the first file of an output is called if a runtime opens it, where it can be called otherwise."""

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)


def run_command(plan: Plan, device: Device | None = None) -> str | None:
    """A line for a shell that runs the output once it is there, or None where no runtime is known to.

    Args:
        plan: What is written.
        device: What it is for, if the user has said so.
    """
    runtime = _runtime(plan) if device is None else device.runtime
    modelfile = next((path for path in plan.files if path.suffix == ".Modelfile"), None)
    if modelfile is not None and (device is None or device.runs == "ollama"):
        runtime = WITH_MODELFILE
    else:
        modelfile = None
    place = str(modelfile or (plan.files[0] if plan.target in _IN_FILES else plan.folder))
    if runtime is None or not _runs(plan, runtime) or not place.isprintable():
        return None
    return runtime.command(place, short_name(plan), (device and device.processor) or "CPU")


def short_name(plan: Plan) -> str:
    """What the model may be called in Ollama: letters, digits, dots and dashes."""
    name = re.sub(r"\.gguf$", "", plan.package.files[0].name.lower())
    return re.sub(r"[^a-z0-9._]+", "-", name).strip("-._") or "model"


def _runtime(plan: Plan) -> Runtime | None:
    """The usual one of the format."""
    if _for_transformers_js(plan):
        return RUNTIMES["transformers.js"]
    return next((r for r in USUAL if plan.target in (r.format, *r.others)), None)


def _for_transformers_js(plan: Plan) -> bool:
    return plan.package.files[0].name.startswith("onnx/")


def _runs(plan: Plan, runtime: Runtime) -> bool:
    """Whether the output is all that the runtime's command needs."""
    first = plan.package.files[0].name
    if plan.model.architecture is None or not plan.outputs:  # plain tensors, or an adapter by itself
        return False
    kept = any(not isinstance(tensor.stored, FloatEncoding) for tensor in plan.tensors)
    if plan.target == "gptq" and kept:  # it may have zero points, which vLLM does not load
        return False
    sees = any(output.in_encoder for output in plan.outputs)
    if sees and plan.target != "gguf":  # runs with another command, and a picture
        return False
    if _for_transformers_js(plan) != (runtime.name == "transformers.js"):
        return False
    if _PART.search(first) and not runtime.in_parts:
        return False
    return re.fullmatch(_OPENED.get(plan.target, ".*"), first, re.IGNORECASE) is not None
