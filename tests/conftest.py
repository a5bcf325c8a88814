"""What all tests share: the hypothesis profile, and how a refusal of a hostile file is judged."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from paths import FIXTURES
from phiconv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

settings.register_profile("phiconv", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("phiconv")


@pytest.fixture
def refused() -> Callable[..., InputError]:
    """Checks that a call refuses its input with one clear line, soon, and without much memory."""

    def check(
        call: Callable[..., Any], *args: Any, says: str, kind: type[InputError] = InputError
    ) -> InputError:
        start = time.process_time()  # the machine may be busy with other things
        with pytest.raises(kind) as caught:
            call(*args)
        assert time.process_time() - start < 1
        message = str(caught.value)
        assert says in message
        assert message.isprintable()
        assert caught.value.path is not None
        tracemalloc.start()
        try:
            with pytest.raises(kind):
                call(*args)
            assert tracemalloc.get_traced_memory()[1] < 50_000_000
        finally:
            tracemalloc.stop()
        return caught.value

    return check


@pytest.fixture
def write_safetensors(tmp_path: Path) -> Callable[..., Path]:
    """Writes a safetensors file with any header: a dict, or the text itself."""

    def write(
        header: Any, data: bytes = b"", name: str = "model.safetensors", length: int | None = None
    ) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
        return path

    return write


def script(name: str) -> ModuleType:
    """A script of fixtures/, as a module."""
    path = FIXTURES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_models() -> ModuleType:
    """The script fixtures/make_models.py, as a module."""
    return script("make_models")


@pytest.fixture(scope="session")
def make_miniature() -> ModuleType:
    """The script fixtures/make_miniature.py, as a module."""
    return script("make_miniature")


@pytest.fixture(scope="session")
def make_base() -> Callable[..., Path]:
    """``make_base(folder, kind="phi3")`` writes the model of the quantized folders of fixtures/."""
    function: Callable[..., Path] = script("quantized_base").make_base
    return function


@pytest.fixture(scope="session")
def make_pytorch() -> ModuleType:
    """The script fixtures/make_pytorch.py, as a module."""
    return script("make_pytorch")


@pytest.fixture(scope="session")
def make_model(make_models: ModuleType) -> Callable[..., Path]:
    """``make_model(folder, kind, *, seed=0, **overrides)`` writes a model folder with random weights."""
    function: Callable[..., Path] = make_models.make_model
    return function


@pytest.fixture(scope="session")
def make_multimodal() -> Callable[..., Path]:
    """``make_multimodal(folder, kind, *, seed=0, **overrides)`` writes a multimodal model folder."""
    function: Callable[..., Path] = script("make_multimodal").make_multimodal
    return function


@pytest.fixture(scope="session")
def model_folder(
    make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of one kind of random model, or of a trained one of fixtures/; not to be written to."""
    root = tmp_path_factory.mktemp("models")

    def find(kind: str) -> Path:
        if (FIXTURES / kind / "config.json").exists():
            return FIXTURES / kind
        folder = root / kind
        return folder if folder.exists() else make_model(folder, kind, seed=7)

    return find
