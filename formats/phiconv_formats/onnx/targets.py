"""What differs between the processors that ONNX Runtime runs a model on, as data.

Facts from GenAI's model builder (0.18), and for Qualcomm's processors from onnxruntime-qnn (2.7). The float
type that a graph computes in is the recipe's choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of processor.

    Attributes:
        accuracy_level: Of products with quantized matrices, where nobody chooses; 0 for the processor's own.
        provider: What genai_config.json says of it; empty for the CPU.
        opset: The version of ONNX's operators. 23 is the first with RMSNormalization.
        ir_version: The version of the file format that goes with it.
        rms_norm: The operator of an RMSNorm that takes no sum along. ONNX Runtime's own, which every
            processor has a kernel for, is none of ONNX's, although it stands in their domain.
        rotates: The attention operator can rotate, and may choose tables by ``If``.
        slices_tables: Of two tables of a rotary embedding the attention gets the rows that the text needs.
            ``If`` copies what it yields, and that would be 50 MB for every token of a long text.
        experts: It has the operators of a mixture of experts as they are emitted.
        fused: It has operators that do two things at once: norms that take the residual addition before them
            along, products that add a bias, and such with a matrix of floats as it is stored, by row.
        static: Graphs have fixed sizes, and a decoder is a pipeline of several (see `pipeline`).
    """

    accuracy_level: int = 0
    provider: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 22
    ir_version: int = 10
    rms_norm: str = "SimplifiedLayerNormalization"
    rotates: bool = True
    slices_tables: bool = False
    experts: bool = False
    fused: bool = True
    static: bool = False


TARGETS = {
    # Level 4 rounds activations to int8: more than twice as fast.
    "cpu": Target(
        accuracy_level=4,
        opset=23,
        ir_version=11,
        rms_norm="RMSNormalization",
        slices_tables=True,
        experts=True,
    ),
    "cuda": Target(provider={"cuda": {"enable_cuda_graph": "0"}}),
    "dml": Target(provider={"dml": {"enable_graph_capture": "1"}}, rotates=False),
    "webgpu": Target(
        accuracy_level=4, provider={"webgpu": {"enableGraphCapture": "0", "validationMode": "basic"}}
    ),
    # 60 is SC8380XP, the Snapdragon X Elite and Plus. Without a model the arithmetic is another one.
    "qnn": Target(
        provider={
            "QNN": {
                "backend_type": "htp",
                "soc_model": "60",
                "htp_performance_mode": "burst",
                "htp_graph_finalization_optimization_mode": "3",
            }
        },
        opset=23,
        ir_version=11,
        rms_norm="RMSNormalization",
        fused=False,
        static=True,
    ),
}
"""Every target, by the name that ``--target`` takes; the first is the usual one."""
