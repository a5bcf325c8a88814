"""The real mtmd, llama.cpp's part that sees: its C interface by ctypes, in the library of `llama_runtime`."""

from __future__ import annotations

import ctypes

import numpy as np

from llama_runtime import Runtime, f32, flag, i32, members, pointer, size, u32

_IMAGE = 1  # of the kinds of chunks


class ContextParams(ctypes.Structure):
    _fields_ = (
        *members(flag, "use_gpu"),
        *members(pointer, "device"),
        *members(flag, "print_timings"),
        *members(i32, "n_threads"),
        *members(ctypes.c_char_p, "image_marker media_marker"),
        *members(i32, "flash_attn_type"),
        *members(flag, "warmup"),
        *members(i32, "image_min_tokens image_max_tokens"),
        *members(pointer, "cb_eval cb_eval_user_data"),
        *members(i32, "batch_max_tokens"),
        *members(pointer, "progress progress_data"),
    )


class InputText(ctypes.Structure):
    _fields_ = (("text", ctypes.c_char_p), ("length", size), *members(flag, "add_special parse_special"))


FUNCTIONS = (
    ("llama_model_n_embd", i32, [pointer]),
    ("mtmd_log_set", None, [pointer, pointer]),
    ("mtmd_context_params_default", ContextParams, []),
    ("mtmd_default_marker", ctypes.c_char_p, []),
    ("mtmd_init_from_file", pointer, [ctypes.c_char_p, pointer, ContextParams]),
    ("mtmd_free", None, [pointer]),
    ("mtmd_bitmap_init", pointer, [u32, u32, pointer]),
    ("mtmd_bitmap_free", None, [pointer]),
    ("mtmd_input_chunks_init", pointer, []),
    ("mtmd_input_chunks_free", None, [pointer]),
    ("mtmd_input_chunks_size", size, [pointer]),
    ("mtmd_input_chunks_get", pointer, [pointer, size]),
    (
        "mtmd_tokenize",
        i32,
        [pointer, pointer, ctypes.POINTER(InputText), ctypes.POINTER(pointer), size],
    ),
    ("mtmd_input_chunk_get_type", i32, [pointer]),
    ("mtmd_input_chunk_get_n_tokens", size, [pointer]),
    ("mtmd_encode_chunk", i32, [pointer, pointer]),
    ("mtmd_get_output_embd", ctypes.POINTER(f32), [pointer]),
)


def picture_features(llama, model_path, projector_path, pictures):
    """What mtmd makes of pictures, each shape (tokens, hidden size of the model).

    Args:
        llama: The library, as `open_llama` gives it.
        model_path: The language model.
        projector_path: The encoder of pictures.
        pictures: Arrays of uint8, shape (height, width, 3).
    """
    for name, result, arguments in FUNCTIONS:
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    llama.mtmd_log_set(llama.quiet, None)
    runtime = Runtime(llama, model_path)
    params = llama.mtmd_context_params_default()
    assert (params.n_threads, params.image_max_tokens, params.warmup) == (4, -1, True)
    params.use_gpu = params.warmup = params.print_timings = False
    params.n_threads = 2
    context = llama.mtmd_init_from_file(str(projector_path).encode(), runtime.model, params)
    try:
        if not context:
            raise RuntimeError(f"mtmd does not load {projector_path}")
        return [_features(llama, context, runtime.model, np.ascontiguousarray(p)) for p in pictures]
    finally:
        if context:
            llama.mtmd_free(context)
        llama.llama_model_free(runtime.model)


def _features(llama, context, model, pixels):
    text = llama.mtmd_default_marker()
    bitmap = llama.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pixels.ctypes.data)
    chunks = llama.mtmd_input_chunks_init()
    try:
        given = InputText(text, len(text), add_special=False, parse_special=True)
        assert llama.mtmd_tokenize(context, chunks, given, (pointer * 1)(bitmap), 1) == 0
        found = [llama.mtmd_input_chunks_get(chunks, i) for i in range(llama.mtmd_input_chunks_size(chunks))]
        (chunk,) = (c for c in found if llama.mtmd_input_chunk_get_type(c) == _IMAGE)
        assert llama.mtmd_encode_chunk(context, chunk) == 0
        shape = (llama.mtmd_input_chunk_get_n_tokens(chunk), llama.llama_model_n_embd(model))
        return np.ctypeslib.as_array(llama.mtmd_get_output_embd(context), shape).copy()
    finally:
        llama.mtmd_input_chunks_free(chunks)
        llama.mtmd_bitmap_free(bitmap)
