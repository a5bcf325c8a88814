"""Quantizes GGUF files with the `llama_model_quantize` of a released llama.cpp: the tool llama-quantize.

    python llama_release.py LIBRARIES SOURCE FOLDER TYPE ...

writes FOLDER/TYPE.gguf for each type with the option --pure. It is a program of its own because two builds of
llama.cpp do not get along in one process. LIBRARIES is the folder that fixtures/fetch_llama.py prints; the
structure and the numbers below are those of that release (llama.h of llama.cpp v0.5.0).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}


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


def main() -> None:
    libraries, source, folder, *types = sys.argv[1:]
    llama = load(Path(libraries))
    for name in types:
        params = llama.llama_model_quantize_default_params()
        assert params.quantize_output_tensor, "llama_model_quantize_params has another layout"
        params.nthread, params.ftype, params.pure = 1, FILE_TYPES[name], True
        target = Path(folder) / f"{name}.gguf"
        if llama.llama_model_quantize(source.encode(), str(target).encode(), ctypes.byref(params)):
            sys.exit(f"llama_model_quantize refused {source} as {name}")


if __name__ == "__main__":
    main()
