"""Compiles the graphs of a folder for one of Qualcomm's processors, with the compiler in onnxruntime-qnn.

The output is a folder like the source, for one processor only: in place of the layers' graphs it has small
ones that name a binary ("EPContext"), which ONNX Runtime loads in no time. A prompt's graph and the one for
single tokens share a binary and the weights in it. Embedding and output matrix stay as they are.

Facts from onnxruntime-qnn 2.7 (QAIRT 2.51) and ONNX Runtime 1.31.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from phiconv.errors import (
    MalformedFileError,
    UnsupportedModelError,
    UsageError,
    printable,
)
from phiconv.spelling import did_you_mean, folded
from phiconv_formats.folders.model_folder import optional_json
from phiconv_formats.onnx.graph_reader import read_graph
from phiconv_formats.onnx.initializers import Initializers, is_plain_name
from phiconv_formats.shared.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import ModuleType

__all__ = ["SOCS", "Compiled", "Stages", "compile_folder", "find_soc", "find_stages"]

SOCS = {
    43: "SM8550",
    52: "SA8255",
    57: "SM8650",
    60: "SC8380XP",
    66: "QCS8550",
    67: "SA8620P",
    69: "SM8750",
    72: "SA8797",
    75: "SXR2330P",
    77: "QCS9100",
    82: "QCS8300",
    87: "SM8850",
    88: "SC8480XP",
    90: "QCS8625",
    92: "SM8850L",
    94: "SC8440XP",
    97: "SM8845",
    103: "SM8975",
    104: "CQ8725S",
    105: "CQ8750S",
    109: "QCS8845",
}
"""Numbers and names of processors, from the binaries that the compiler of onnxruntime-qnn 2.7 makes for them:
those whose architecture is 73 or newer."""

_ALIASES = {
    "x-elite": "SC8380XP",
    "x-plus": "SC8380XP",
    "x2-elite": "SC8480XP",
    "8-gen-2": "SM8550",
    "8-gen-3": "SM8650",
    "8-elite": "SM8750",
    "8-elite-gen-5": "SM8850",
}
"""What some of them are sold as."""

_SUFFIXES = {".json", ".jinja", ".txt", ".model"}
_WEIGHTS = "model.onnx.data"
_ALIGNMENT = 4096
_TILE = 1 << 22
_PACKAGE = "onnxruntime-qnn"


@dataclass(frozen=True, slots=True)
class Stages:
    """The graphs of a folder.

    Attributes:
        folder: The folder.
        config: genai_config.json.
        sections: What it says of each graph, by name: a part of ``config``.
    """

    folder: Path
    config: dict[str, Any]
    sections: Mapping[str, dict[str, Any]]

    @property
    def on_device(self) -> list[str]:
        """The names of those that are compiled."""
        return [name for name, section in self.sections.items() if "session_options" in section]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A folder that was compiled.

    Attributes:
        folder: Where it is.
        soc: Number of the processor.
        sizes: Names and bytes of its files.
    """

    folder: Path
    soc: int
    sizes: Mapping[str, int]


def find_soc(text: str) -> int:
    """The number of a processor by its number, its name, or what it is sold as.

    Raises:
        UsageError: The compiler knows no such processor.
    """
    names = {folded(name): number for number, name in SOCS.items()}
    names |= {str(number): number for number in SOCS}
    names |= {alias: names[folded(name)] for alias, name in _ALIASES.items()}
    if (found := names.get(folded(text))) is not None:
        return found
    listed = ", ".join(f"{name} ({number})" for number, name in SOCS.items())
    hint = did_you_mean(text, [*SOCS.values(), *_ALIASES], f"one of {listed}")
    raise UsageError(f"--soc {text}: the compiler knows no such processor", hint=hint)


def find_stages(folder: Path) -> Stages:
    """Looks at a folder that may be compiled.

    Raises:
        UnsupportedModelError: It is none that was written for Qualcomm's processors, or is compiled already.
        MalformedFileError: genai_config.json is not as phiconv writes it.
    """
    path = folder / "genai_config.json"
    config = optional_json(path) or {}
    decoder = config.get("model", {}).get("decoder") if isinstance(config.get("model"), dict) else None
    pipeline = decoder.get("pipeline") if isinstance(decoder, dict) else None
    if not isinstance(pipeline, list) or len(pipeline) != 1 or not isinstance(pipeline[0], dict):
        raise UnsupportedModelError(
            "no folder for Qualcomm's processors", path=folder, hint="make one with --to onnx --target qnn"
        )
    for name, section in pipeline[0].items():
        file = section.get("filename") if isinstance(section, dict) else None
        if not isinstance(file, str) or not is_plain_name(file):
            at = f"stage {printable(name)}"
            raise MalformedFileError("names no file in the same folder", path=path, at=at)
    stages = Stages(folder, config, pipeline[0])
    for name in stages.on_device:
        graph = read_graph(InputFile(folder / stages.sections[name]["filename"]))
        if any(node.operator == "EPContext" for node in graph.nodes):
            raise UnsupportedModelError(
                "is compiled already", path=folder, hint="compile the folder that it was made from"
            )
    return stages


def compile_folder(
    source: Path,
    folder: Path,
    soc: int,
    *,
    share: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Compiled:
    """Compiles a folder into an empty one.

    Args:
        source: A folder that was written for Qualcomm's processors.
        folder: Where the output goes.
        soc: The number of the processor.
        share: The graphs of a prompt and of single tokens share their weights.
        progress: Is told what is compiled next.

    Raises:
        UnsupportedModelError: The source is no such folder, or the compiler refuses it.
        UsageError: There is no compiler.
        OSError: The output cannot be written.
    """
    stages = find_stages(source)
    runtime = _Compiler(soc, share=share)
    for group in _groups(stages):
        for number, name in enumerate(group):
            if progress is not None:
                progress(name)
            file = f"{name}_{soc}.onnx"
            last = number == len(group) - 1
            runtime.compile(source / stages.sections[name]["filename"], folder / file, last=last)
            section = stages.sections[name]
            section["filename"] = file
            section["session_options"]["provider_options"] = [_with_soc(section, soc)]
    _copy_ends(stages, folder)
    for path in _companions(source):
        shutil.copyfile(path, folder / path.name)
    (folder / "genai_config.json").write_text(json.dumps(stages.config, indent=4), encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Compiled(folder, soc, sizes)


def _companions(folder: Path) -> list[Path]:
    """The tokenizer's files and what else is beside the graphs; no link out of the folder."""
    found = (path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES)
    return [p for p in found if p.name[0] != "." and p.resolve().parent == folder.resolve() and p.is_file()]


def _groups(stages: Stages) -> list[list[str]]:
    """The graphs that have the same layers: those of a prompt and of single tokens."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in stages.on_device:
        caches = tuple(n for n in stages.sections[name].get("outputs", ()) if "present" in str(n))
        groups.setdefault(caches, []).append(name)
    return list(groups.values())


def _with_soc(section: Mapping[str, Any], soc: int) -> dict[str, Any]:
    """The provider's options with this processor in them."""
    (options,) = section["session_options"]["provider_options"]
    return {name: {**values, "soc_model": str(soc)} for name, values in options.items()}


class _Compiler:
    """ONNX Runtime with Qualcomm's compiler."""

    def __init__(self, soc: int, *, share: bool) -> None:
        self._soc = str(soc)
        self._share = share
        self._runtime = _runtime()
        self._open: list[Any] = []  # the first session of a group stays alive until the last one is made

    def compile(self, graph: Path, output: Path, *, last: bool) -> None:
        """Compiles a graph; its weights are shared with those before, up to the last one."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 4
        entries = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(output),
            "ep.context_embed_mode": "0",
        }
        if self._share:
            entries |= {"ep.share_ep_contexts": "1"} | ({"ep.stop_share_ep_contexts": "1"} if last else {})
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        devices = [device for device in self._runtime.get_ep_devices() if device.ep_name == "QNN"][:1]
        options.add_provider_for_devices(devices, {"backend_type": "htp", "soc_model": self._soc})
        try:
            self._open.append(self._runtime.InferenceSession(str(graph), options))
        except Exception as error:  # whatever a library of C++ raises
            raise self._refused(graph, str(error)) from error
        nodes = read_graph(InputFile(output)).nodes if output.exists() else []
        if not any(node.operator == "EPContext" for node in nodes):
            raise self._refused(graph, "nothing in it runs on such a processor")
        if last:
            self._open.clear()

    def _refused(self, graph: Path, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"the compiler does not compile this for {SOCS[int(self._soc)]}: {printable(why)}", path=graph
        )


def _runtime() -> ModuleType:
    try:
        found, package = (__import__(name) for name in ("onnxruntime", "onnxruntime_qnn"))
    except ImportError:
        raise UsageError(
            f"compiling takes {_PACKAGE}, which is not installed",
            hint="pip install phiconv[qnn]; there are packages for Linux on x86-64 and Windows on ARM64",
        ) from None
    if not any(device.ep_name == "QNN" for device in found.get_ep_devices()):
        try:
            found.register_execution_provider_library("QNN", package.get_library_path())
        except Exception as error:  # whatever a library of C++ raises
            raise UsageError(f"{_PACKAGE} does not load here: {printable(error)}") from error
    return found


def _copy_ends(stages: Stages, folder: Path) -> None:
    """Copies the graphs that run on the CPU, with their own weights only."""
    places: dict[tuple[str, int], int] = {}
    with (folder / _WEIGHTS).open("wb") as output:
        for name, section in stages.sections.items():
            if name in stages.on_device:
                continue
            path = stages.folder / section["filename"]
            file = InputFile(path)
            tensors = Initializers(read_graph(file), file)  # checks every place
            model = onnx.load(str(path), load_external_data=False)
            for tensor in model.graph.initializer:
                stored = tensors.tensors[tensor.name]
                if not stored.file:
                    continue
                key = stored.file, stored.offset
                if key not in places:
                    output.seek(-(-output.tell() // _ALIGNMENT) * _ALIGNMENT)
                    places[key] = output.tell()
                    _copy(stages.folder / stored.file, stored.offset, stored.length or 0, output)
                del tensor.external_data[:]
                moved = {"location": _WEIGHTS, "offset": places[key], "length": stored.length}
                for entry, value in moved.items():
                    tensor.external_data.add(key=entry, value=str(value))
            (folder / path.name).write_bytes(model.SerializeToString(deterministic=True))


def _copy(path: Path, offset: int, length: int, output: Any) -> None:
    file = InputFile(path)
    for start in range(offset, offset + length, _TILE):
        output.write(file.read_bytes(start, min(_TILE, offset + length - start)))
