"""The real llama.cpp, computing: its C interface by ctypes, as the `xllamacpp` package brings the library."""

from __future__ import annotations

import ctypes
import importlib.metadata

import numpy as np
import pytest

# The structures below are those of this release; another one may have moved their members.
LAYOUT_OF = "2026.10.11549"

u32, i32, f32 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_float
flag, pointer, size = ctypes.c_bool, ctypes.c_void_p, ctypes.c_size_t


def members(kind, names):
    return [(name, kind) for name in names.split()]


class ModelParams(ctypes.Structure):
    _fields_ = (
        *members(pointer, "devices tensor_buft_overrides"),
        *members(i32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
        *members(pointer, "tensor_split progress progress_data kv_overrides"),
        *members(flag, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    )


class ContextParams(ctypes.Structure):
    _fields_ = (
        *members(u32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        *members(i32, "n_threads n_threads_batch"),
        *members(i32, "ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
        *members(f32, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor"),
        *members(f32, "yarn_beta_fast yarn_beta_slow"),
        *members(u32, "yarn_orig_ctx"),
        *members(f32, "defrag_thold"),
        *members(pointer, "cb_eval cb_eval_user_data"),
        *members(i32, "type_k type_v"),
        *members(pointer, "abort_callback abort_data"),
        *members(flag, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        *members(pointer, "samplers"),
        *members(size, "n_samplers"),
        *members(pointer, "ctx_other"),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", i32),
        ("token", ctypes.POINTER(i32)),
        ("embd", pointer),
        ("pos", ctypes.POINTER(i32)),
        ("n_seq_id", ctypes.POINTER(i32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(i32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


FUNCTIONS = (
    ("llama_model_default_params", ModelParams, []),
    ("llama_context_default_params", ContextParams, []),
    ("llama_model_load_from_file", pointer, [ctypes.c_char_p, ModelParams]),
    ("llama_model_get_vocab", pointer, [pointer]),
    ("llama_vocab_n_tokens", i32, [pointer]),
    ("llama_init_from_model", pointer, [pointer, ContextParams]),
    ("llama_batch_init", Batch, [i32, i32, i32]),
    ("llama_batch_free", None, [Batch]),
    ("llama_decode", i32, [pointer, Batch]),
    ("llama_get_logits", ctypes.POINTER(f32), [pointer]),
    ("llama_adapter_lora_init", pointer, [pointer, ctypes.c_char_p]),
    ("llama_set_adapters_lora", i32, [pointer, ctypes.POINTER(pointer), size, ctypes.POINTER(f32)]),
    ("llama_free", None, [pointer]),
    ("llama_model_free", None, [pointer]),
    ("llama_log_set", None, [pointer, pointer]),
)


def open_llama(ggml):
    """The functions of a library that was opened with ctypes; the test is skipped with another release."""
    found = importlib.metadata.version("xllamacpp")
    if found != LAYOUT_OF:
        pytest.skip(f"the layouts of the structures are those of xllamacpp {LAYOUT_OF}, not of {found}")
    for name, result, arguments in FUNCTIONS:
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
    ggml.llama_log_set(quiet, None)
    ggml.quiet = quiet  # the library calls it as long as it is loaded
    ggml.llama_backend_init()
    params = ggml.llama_context_default_params()
    assert (params.n_ctx, params.n_batch, params.n_ubatch, params.type_k) == (512, 2048, 512, 1)
    assert (params.defrag_thold, params.kv_unified, params.n_samplers) == (-1.0, False, 0)
    return ggml


class Runtime:
    """A model file loaded by llama.cpp."""

    def __init__(self, llama, path):
        self.llama = llama
        self.model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def adapter(self, path):
        """A file that is added to the model, which is freed with it."""
        found = self.llama.llama_adapter_lora_init(self.model, str(path).encode())
        if not found:
            raise RuntimeError(f"llama.cpp does not load {path}")
        return found

    def logits(self, ids, context=512, adapter=None, scale=1.0):
        """Logits at every position of a prompt; cache and attention in float32."""
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = 2
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        state = self.llama.llama_init_from_model(self.model, params)
        assert state
        if adapter is not None:
            one, scales = (pointer * 1)(adapter), (f32 * 1)(scale)
            assert self.llama.llama_set_adapters_lora(state, one, 1, scales) == 0
        batch = self.llama.llama_batch_init(len(ids), 0, 1)
        try:
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
                batch.seq_id[i][0] = 0
            batch.n_tokens = len(ids)
            assert self.llama.llama_decode(state, batch) == 0
            values = self.llama.llama_get_logits(state)
            return np.ctypeslib.as_array(values, (len(ids), self.vocabulary)).copy()
        finally:
            self.llama.llama_batch_free(batch)
            self.llama.llama_free(state)


def llama_logits(llama, path, ids):
    """Logits of a file at every position of a prompt."""
    runtime = Runtime(llama, path)
    try:
        return runtime.logits(ids, context=max(512, -(-len(ids) // 256) * 256))
    finally:
        llama.llama_model_free(runtime.model)
