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
        Evaluation,
        Examination,
        Finding,
        Model,
        Plan,
        Report,
        Result,
        Verification,
        calibrate,
        compare,
        compile_qnn,
        convert,
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
        verify,
    )

__all__ = [
    "Choices",
    "Comparison",
    "ConfigError",
    "DiskFullError",
    "Evaluation",
    "Examination",
    "Finding",
    "InputError",
    "MalformedFileError",
    "MissingFileError",
    "Model",
    "OutputError",
    "OutputExistsError",
    "PhiconvError",
    "Plan",
    "Report",
    "Result",
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
    "verify",
]

_LAZY = (
    "Choices",
    "Comparison",
    "Evaluation",
    "Examination",
    "Finding",
    "Model",
    "Plan",
    "Report",
    "Result",
    "Verification",
    "calibrate",
    "compare",
    "compile_qnn",
    "convert",
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
    "verify",
)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'phiconv' has no attribute {name!r}")
    from phiconv import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
