"""llama.cpp computes with our files what transformers computes with the checkpoint.

References: fixtures/*/reference.npz of the trained models, fixtures/references/*.npz of random ones.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from contextlib import contextmanager

import numpy as np
import pytest

import phiconv
from references import FIXTURES, open_reference, relative_l2

pytestmark = pytest.mark.runtime

TRAINED = ["tiny-phi3", "tiny-phi4mini"]

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
    ("llama_free", None, [pointer]),
    ("llama_model_free", None, [pointer]),
    ("llama_log_set", None, [pointer, pointer]),
)


@pytest.fixture(scope="module")
def llama(ggml):
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

    def logits(self, ids, context=512):
        """Logits at every position of a prompt; cache and attention in float32."""
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = 2
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        state = self.llama.llama_init_from_model(self.model, params)
        assert state
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


@pytest.fixture
def run(llama, tmp_path):
    """Converts a folder and loads the result, as a context manager."""

    @contextmanager
    def start(folder, quant, **options):
        result = phiconv.convert(folder, tmp_path / f"{quant}.gguf", quant=quant, force=True, **options)
        runtime = Runtime(llama, result.files[0])
        try:
            yield runtime
        finally:
            llama.llama_model_free(runtime.model)

    return start


def mean_nll(logits, ids):
    shifted = logits[:-1].astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).mean())


@pytest.mark.parametrize("name", TRAINED)
def test_trained_model_in_f16_predicts_the_same_tokens(name, run):
    reference = open_reference(f"{name}/reference.npz")
    with run(FIXTURES / name, "F16") as runtime:
        logits = np.stack([runtime.logits(ids) for ids in reference["input_ids"]])
    expected = reference["logits_f32"]
    assert (logits.argmax(axis=-1) == reference["logits_f16"].argmax(axis=-1)).all()
    assert relative_l2(logits[: len(expected)], expected) < 3e-4


@pytest.mark.parametrize("name", TRAINED)
def test_trained_model_in_f32_gives_the_same_logits(name, run):
    reference = open_reference(f"{name}/reference.npz")
    with run(FIXTURES / name, "F32") as runtime:
        logits = runtime.logits(reference["input_ids"][0])
        # 768 tokens: tiny-phi4mini's original context is 512, so the runtime takes the long factors.
        long_logits = runtime.logits(reference["long_input_ids"][0], context=1024)[-32:]
    assert relative_l2(logits, reference["logits_f32"][0]) < 2e-6
    assert relative_l2(long_logits, reference["long_logits_last32_f32"][0]) < 1e-5
    assert (long_logits.argmax(axis=-1) == reference["long_logits_last32_f32"][0].argmax(axis=-1)).all()


@pytest.mark.parametrize("name", TRAINED)
def test_quantized_trained_model_predicts_text_nearly_as_well(name, run):
    # Mean loss per token of real held-out text; these bounds are about twice what was measured.
    ids = open_reference(f"{name}/reference.npz")["input_ids"][:6]
    loss = {}
    for quant in ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"):
        with run(FIXTURES / name, quant) as runtime:
            loss[quant] = np.mean([mean_nll(runtime.logits(prompt), prompt) for prompt in ids])
    assert 2.5 < loss["F16"] < 4.5
    increase = {quant: abs(value - loss["F16"]) for quant, value in loss.items()}
    bounds = {"F16": 0, "BF16": 0.002, "Q8_0": 0.005, "Q5_1": 0.03, "Q5_0": 0.03, "Q4_1": 0.06, "Q4_0": 0.06}
    assert {quant: value for quant, value in increase.items() if value > bounds[quant]} == {}


# The runtime computes phi's GELU by a table of float16 values; everything else is float32 arithmetic.
RANDOM = {
    "phi": 1e-3,
    "phi2": 1e-3,
    "phi3": 3e-6,
    "phi3-gqa": 3e-6,
    "phi4": 3e-6,
    "phi4mini": 3e-6,
    "phi4mini-long": 2e-5,
}


def check_random(run, folder, name, bound):
    reference = open_reference(f"references/{name}.npz")
    context = 1024 if name.endswith("-long") else 512
    for quant, limit in (("F32", bound), ("F16", 2e-3)):
        with run(folder, quant) as runtime:
            logits = runtime.logits(reference["input_ids"], context)
        assert relative_l2(logits[reference["positions"]], reference["logits"]) < limit
        assert (logits.argmax(axis=-1) == reference["argmax"]).all()


@pytest.mark.parametrize("name", RANDOM)
def test_random_model_gives_the_same_logits(name, run, model_folder):
    check_random(run, model_folder(name.removesuffix("-long")), name, RANDOM[name])


def test_transformers5_config_gives_the_same_logits(run, model_folder):
    check_random(run, model_folder("phi4mini-transformers5"), "phi4mini", RANDOM["phi4mini"])


def test_split_file_gives_the_same_logits(run, model_folder):
    reference = open_reference("references/phi3.npz")
    with run(model_folder("phi3"), "F32", split_max_size=150_000) as runtime:
        logits = runtime.logits(reference["input_ids"])
    assert relative_l2(logits[reference["positions"]], reference["logits"]) < RANDOM["phi3"]


def test_mixture_of_experts_runs(run, model_folder):
    # The runtime's own arithmetic differs from transformers' for this family: RMSNorm in place of LayerNorm,
    # softmax over the best two experts in place of the sparse mixer. So there is nothing to compare the
    # logits with, except for those of the same model stored in another layout.
    ids, logits = range(40, 72), {}
    for kind in ("phimoe", "phimoe-transformers5", "phimoe-stacked"):
        with run(model_folder(kind), "F16") as runtime:
            logits[kind] = runtime.logits(ids)
    assert np.isfinite(logits["phimoe"]).all()
    assert 0.5 < logits["phimoe"].std() < 2
    np.testing.assert_array_equal(logits["phimoe-transformers5"], logits["phimoe"])
    np.testing.assert_array_equal(logits["phimoe-stacked"], logits["phimoe"])


@pytest.mark.xfail(
    reason="llama.cpp's phimoe takes hidden_size / heads for a head's size", raises=RuntimeError, strict=True
)
def test_mixture_of_experts_with_its_own_head_size_loads(run, model_folder):
    with run(model_folder("phimoe-tiny"), "F16"):
        pass
