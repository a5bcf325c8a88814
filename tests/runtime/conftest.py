"""The real runtimes; a test is skipped by name where one cannot be had."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from llama_runtime import open_llama

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray


@pytest.fixture(scope="session")
def ggml() -> ctypes.CDLL:
    """The library, opened without importing the package; the test is skipped where it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = [] if spec is None else spec.submodule_search_locations or []
    libraries = [file for folder in folders for file in Path(folder).glob("xllamacpp*.so")]
    if not libraries:
        pytest.skip("xllamacpp is not installed")
    library = ctypes.CDLL(str(libraries[0]))
    size, number, pointer = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = size
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    library.ggml_row_size.restype = size
    library.ggml_row_size.argtypes = [ctypes.c_int, number]
    return library


@pytest.fixture(scope="session")
def ggml_quantize(ggml: ctypes.CDLL) -> Callable[..., NDArray[np.uint8]]:
    """What ggml makes of float32 rows in a type of this name, perhaps with importance: a vector of bytes."""

    def quantize(
        values: NDArray[np.float32], name: str, importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        kind = GGMLQuantizationType[name.upper()].value
        rows, columns = values.shape
        values = np.ascontiguousarray(values, np.float32)
        packed = np.zeros(rows * ggml.ggml_row_size(kind, columns), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        used = ggml.ggml_quantize_chunk(
            kind, values.ctypes.data, packed.ctypes.data, 0, rows, columns, weights
        )
        assert used == packed.size
        return packed

    return quantize


@pytest.fixture(scope="session")
def llama(ggml: ctypes.CDLL) -> ctypes.CDLL:
    """llama.cpp, ready to load files."""
    return open_llama(ggml)


@pytest.fixture(scope="session")
def mlx_lm() -> ModuleType:
    """The real mlx-lm, on the processor."""
    found = pytest.importorskip("mlx_lm", reason="mlx-lm is not installed", exc_type=ImportError)
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    return found


@pytest.fixture(scope="session")
def ort() -> ModuleType:
    """The real ONNX Runtime."""
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="session")
def openvino() -> ModuleType:
    """The real OpenVINO."""
    return pytest.importorskip("openvino", reason="OpenVINO is not installed", exc_type=ImportError)


@pytest.fixture(scope="session")
def genai(openvino: ModuleType) -> ModuleType:
    """The real OpenVINO GenAI."""
    return pytest.importorskip(
        "openvino_genai", reason="OpenVINO GenAI is not installed", exc_type=ImportError
    )


@pytest.fixture(scope="session")
def litert() -> ModuleType:
    """The real LiteRT's interpreter."""
    return pytest.importorskip(
        "ai_edge_litert.interpreter", reason="ai-edge-litert is not installed", exc_type=ImportError
    )


@pytest.fixture(scope="session")
def litert_lm() -> ModuleType:
    """The real LiteRT-LM."""
    return pytest.importorskip("litert_lm", reason="litert-lm-api is not installed", exc_type=ImportError)
