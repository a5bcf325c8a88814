"""A Hugging Face folder of safetensors as an output: the checkpoint that transformers loads."""

from __future__ import annotations

from phiconv_formats.folders.hub_tensors import output_tensors
from phiconv_formats.huggingface.writer import package

__all__ = ["FolderWriter"]


class FolderWriter:
    """The writer of folders of safetensors (see `phiconv_formats.Writer`)."""

    tensors = staticmethod(output_tensors)
    package = staticmethod(package)
