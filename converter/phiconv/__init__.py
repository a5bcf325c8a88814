"""phiconv: offline conversion and quantization of Phi language models, in pure NumPy.

    import phiconv

    model = phiconv.open_model("Phi-4-mini-instruct")
    phiconv.convert(model, "phi-4-mini.gguf", quant="q8")

Everything public is listed here and lives in `phiconv.api` and `phiconv.errors`. It is imported when it is
first used, so that ``import phiconv`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from phiconv._version import __version__
from phiconv.errors import (
    CancelledError,
    ConfigError,
    DiskFullError,
    InputError,
    MalformedFileError,
    MissingFileError,
    OutputError,
    OutputExistsError,
    PhiconvError,
    UnsafePickleError,
    UnsupportedModelError,
    UsageError,
    WeightError,
    WorkerError,
)

if TYPE_CHECKING:
    from phiconv.api import (
        Choices,
        Comparison,
        Difference,
        Divergence,
        Evaluation,
        Examination,
        Finding,
        Hyperparameters,
        Lora,
        Model,
        Plan,
        Progress,
        Report,
        Result,
        Tensor,
        TensorDifference,
        TensorPlan,
        TensorReport,
        Tokenizer,
        Verification,
        calibrate,
        compare,
        compile_qnn,
        convert,
        decode,
        encode,
        evaluate,
        evaluate_all,
        examine,
        following_links,
        generate,
        logits,
        machines,
        merge,
        open_model,
        plan,
        read,
        report,
        sign,
        verify,
    )

__all__ = [
    "CancelledError",
    "Choices",
    "Comparison",
    "ConfigError",
    "Difference",
    "DiskFullError",
    "Divergence",
    "Evaluation",
    "Examination",
    "Finding",
    "Hyperparameters",
    "InputError",
    "Lora",
    "MalformedFileError",
    "MissingFileError",
    "Model",
    "OutputError",
    "OutputExistsError",
    "PhiconvError",
    "Plan",
    "Progress",
    "Report",
    "Result",
    "Tensor",
    "TensorDifference",
    "TensorPlan",
    "TensorReport",
    "Tokenizer",
    "UnsafePickleError",
    "UnsupportedModelError",
    "UsageError",
    "Verification",
    "WeightError",
    "WorkerError",
    "__version__",
    "calibrate",
    "compare",
    "compile_qnn",
    "convert",
    "decode",
    "encode",
    "evaluate",
    "evaluate_all",
    "examine",
    "following_links",
    "generate",
    "logits",
    "machines",
    "merge",
    "open_model",
    "plan",
    "read",
    "report",
    "sign",
    "verify",
]

_LAZY = (
    "Choices",
    "Comparison",
    "Difference",
    "Divergence",
    "Evaluation",
    "Examination",
    "Finding",
    "Hyperparameters",
    "Lora",
    "Model",
    "Plan",
    "Progress",
    "Report",
    "Result",
    "Tensor",
    "TensorDifference",
    "TensorPlan",
    "TensorReport",
    "Tokenizer",
    "Verification",
    "calibrate",
    "compare",
    "compile_qnn",
    "convert",
    "decode",
    "encode",
    "evaluate",
    "evaluate_all",
    "examine",
    "following_links",
    "generate",
    "logits",
    "machines",
    "merge",
    "open_model",
    "plan",
    "read",
    "sign",
    "report",
    "verify",
)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'phiconv' has no attribute {name!r}")
    from phiconv import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
