"""Quantizes GGUF files with the `llama_model_quantize` of a released llama.cpp: the tool llama-quantize.

    python llama_release.py LIBRARIES JOBS.json

carries out a list of jobs: objects with ``source``, ``target`` and ``recipe``, and perhaps ``pure``, ``jobs``
(threads), ``leave_output_tensor``, ``allow_requantize``, ``output_tensor_type``, ``token_embedding_type``,
``tensor_types`` (a list of pairs) and ``imatrix`` (an ``.npz`` of float32 vectors by tensor name). It is a
program of its own because two builds of llama.cpp do not get along in one process. LIBRARIES is the folder
that fixtures/fetch_llama.py prints; the structures below are those of that release (llama.h of llama.cpp
v0.5.0).
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType, LlamaFileType

FILE_TYPES = {t.name.removeprefix("ALL_").removeprefix("MOSTLY_"): t.value for t in LlamaFileType}
TYPES = {t.name.upper(): t.value for t in GGMLQuantizationType}


class QuantizeParams(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int32) for n in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *(
            (n, ctypes.c_bool)
            for n in (
                "allow_requantize",
                "quantize_output_tensor",
                "only_copy",
                "pure",
                "keep_split",
                "dry_run",
            )
        ),
        *((n, ctypes.c_void_p) for n in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
        ("max_buf_size", ctypes.c_size_t),
    )


class Importance(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


def load(folder: Path) -> ctypes.CDLL:
    """Opens the libraries, the ones that others need first."""
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(folder / "libggml.v0.5.0.so"), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(folder / "libllama.v0.5.0.so"), mode=ctypes.RTLD_GLOBAL)
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    # Errors alone are worth a line; the callback must outlive this function.
    llama.log = log(lambda level, text, _: level == 4 and sys.stderr.buffer.write(text) and None)
    base.ggml_log_set(llama.log, None)
    llama.llama_log_set(llama.log, None)
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = QuantizeParams
    llama.llama_model_quantize.restype = ctypes.c_uint32
    llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParams)]
    return llama


def quantize(llama: ctypes.CDLL, job: dict) -> None:
    """Carries one job out."""
    params = llama.llama_model_quantize_default_params()
    assert params.quantize_output_tensor, "llama_model_quantize_params has another layout"
    params.nthread, params.ftype = job.get("jobs", 2), FILE_TYPES[job["recipe"]]
    params.pure = job.get("pure", False)
    params.allow_requantize = job.get("allow_requantize", False)
    params.quantize_output_tensor = not job.get("leave_output_tensor", False)
    for key in ("output_tensor_type", "token_embedding_type"):
        if job.get(key):
            setattr(params, key, TYPES[job[key].upper()])
    arrays = dict(np.load(job["imatrix"])) if job.get("imatrix") else {}
    weights = [Importance(name.encode(), a.ctypes.data, a.size) for name, a in arrays.items()]
    types = [Override(p.encode(), TYPES[t.upper()]) for p, t in job.get("tensor_types", [])]
    if weights:
        weights_array = (Importance * (len(weights) + 1))(*weights)
        params.imatrix = ctypes.addressof(weights_array)
    if types:
        types_array = (Override * (len(types) + 1))(*types)
        params.tt_overrides = ctypes.addressof(types_array)
    if llama.llama_model_quantize(job["source"].encode(), job["target"].encode(), ctypes.byref(params)):
        sys.exit(f"llama_model_quantize refused {job}")


def main() -> None:
    libraries, jobs = sys.argv[1:]
    llama = load(Path(libraries))
    for job in json.loads(Path(jobs).read_text()):
        quantize(llama, job)


if __name__ == "__main__":
    main()
