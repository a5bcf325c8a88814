"""What a path is, by what is in it; and of one that is no model, what it is instead and what to do."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from phiconv.errors import InputError, printable
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "NO_WEIGHTS",
    "Advice",
    "format_of_content",
    "has_original_weights",
    "is_there",
    "only_adapter",
    "what_folder_is",
    "what_is_missing",
]

NO_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
"""What training leaves beside the weights."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_ORIGINAL = (*_WEIGHTS, ".index.json")

_LARGEST_HEADER = 100 << 20  # of a safetensors file
_MOST_NAMES = 5


class Advice(NamedTuple):
    """What something is, and what to do."""

    message: str
    hint: str


def format_of_content(path: Path) -> str:
    """The format of a file by its first bytes; "" where they do not say.

    Raises:
        InputError: It cannot be read, or something else stands in its place.
    """
    with InputFile(path) as file:
        start = file.read_bytes(0, min(file.size, 16))
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith((b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")):
        return "pytorch"
    if len(start) > 9 and struct.unpack("<Q", start[:8])[0] < _LARGEST_HEADER and start[8:9] == b"{":
        return "safetensors"
    if start.startswith((b"<?xml", b"<net")):
        return "openvino"
    if start.startswith(b"LITERTLM") or start[4:8] == b"TFL3":
        return "litert"
    return ""


def has_original_weights(folder: Path) -> bool:
    """Whether a folder has files of weights, or an index of some, as training and the hub have them."""
    names = (p.name for p in folder.iterdir())
    return any(n.endswith(_ORIGINAL) and n not in NO_WEIGHTS and not n.startswith(".") for n in names)


def only_adapter(folder: Path) -> bool:
    """Whether all weights of a folder are an adapter's."""
    weights = (p.name for end in _WEIGHTS for p in folder.glob(f"*{end}"))
    return all(name.startswith("adapter_") or name in NO_WEIGHTS for name in weights)


# ----------------------------------------------------------------------------------------- what is not there

_ADDRESS = re.compile(r"(?:https?|hf|s3|gs):/", re.IGNORECASE)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_NAME = re.compile(r"\.(?:gguf|safetensors|bin|pth?|ckpt|onnx|xml|json)$", re.IGNORECASE)
_OFFLINE = "phiconv works offline: download it first"


def is_there(path: Path) -> bool:
    """Whether there is something at a path.

    Raises:
        InputError: There can be nothing: a name that is too long, or folders that may not be entered.
    """
    try:
        if stat.S_ISDIR(path.stat().st_mode) and not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise InputError(
            f"cannot be opened: {error.strerror}", path=path, hint="check its name, and who may read it"
        ) from error
    except ValueError as error:  # a NUL character
        raise InputError(f"not a file name: {error}", path=path, hint="check its name") from error
    return True


def what_is_missing(path: Path) -> Advice:
    """What somebody may have meant by a path that there is not."""
    text = str(path)
    if path.is_symlink():
        return Advice("a symbolic link that leads nowhere", "download again what it leads to")
    if _ADDRESS.match(text):
        return Advice("an address, and not a file or folder", _OFFLINE)
    if _HUB_NAME.fullmatch(text) and not path.parent.exists() and not _FILE_NAME.search(text):
        return Advice("no such file or folder; it looks like a name on the Hugging Face hub", _OFFLINE)
    if text.startswith("~"):
        return Advice("no such file or folder", "")
    near = sorted(p.name for p in path.parent.glob("*") if p.name.lower() == path.name.lower())
    hint = f"there is {printable(near[0], 80)}" if near else ""
    if not path.parent.exists():
        hint = f"there is no folder {printable(path.parent, 80)} either"
    return Advice("no such file or folder", hint)


# ------------------------------------------------------------------------------------ folders of other kinds


def what_folder_is(folder: Path) -> Advice | None:
    """What a folder is that has no model's files; None where nothing tells."""
    names = sorted(p.name for p in folder.iterdir())
    if not names:
        return Advice("an empty folder", "the download may have failed")
    training = _training_state(names)
    if training is not None:
        return training
    cached = [name for name in names if name.startswith("models--")]
    if cached:
        models = [name.removeprefix("models--").replace("--", "/") for name in cached]
        return Advice(
            f"the cache of the Hugging Face hub, with {_list(models)}",
            f"give the folder of a snapshot: {cached[0]}/snapshots/...",
        )
    if "snapshots" in names and "blobs" in names:
        found = _models_in(folder / "snapshots")
        return Advice(
            "a model's folder in the cache of the Hugging Face hub",
            f"give snapshots/{found[0] if found else '...'} in it",
        )
    found = _models_in(folder)
    if found:
        return Advice(f"a folder of models: {_list(found)}", f"give one of them, as {found[0]}")
    return None


def _training_state(names: list[str]) -> Advice | None:
    if any(name.endswith(".distcp") or name.startswith("pytorch_model_fsdp") for name in names):
        return Advice("the state of a training with FSDP, in pieces", "gather it: accelerate merge-weights")
    zero = ("zero_pp_rank", "bf16_zero_pp_rank", "fp16_zero_pp_rank", "zero_to_fp32", "mp_rank_")
    if any(name.startswith(zero) or re.fullmatch(r"global_step\d+", name) for name in names):
        return Advice("the state of a training with DeepSpeed, in pieces", "gather it: zero_to_fp32.py")
    return None


def _models_in(folder: Path) -> list[str]:
    """The folders in a folder that look like models."""
    if not folder.is_dir():
        return []
    inner = (p for p in folder.iterdir() if p.is_dir() and (p / "config.json").exists())
    return sorted((printable(p.name, 80) for p in inner), key=_by_number)


def _by_number(name: str) -> tuple[str, int]:
    """checkpoint-1000 comes behind checkpoint-500."""
    match = re.fullmatch(r"(.*?)(\d*)", name)
    assert match is not None  # noqa: S101 - anything matches
    return match[1], int(match[2] or 0)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(printable(name, 80) for name in names[:_MOST_NAMES]) + more
