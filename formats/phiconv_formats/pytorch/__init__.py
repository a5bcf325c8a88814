"""PyTorch checkpoints, read as data: nothing in them is unpickled, imported or called.

A checkpoint is a pickle that describes tensors, and the bytes of their storages: a zip archive of stored
entries since PyTorch 1.6, one stream before that. The pickle is walked opcode by opcode by a machine that can
build containers, numbers, texts and descriptions of tensors, and that refuses everything else by name.
"""

from __future__ import annotations

from phiconv_formats.pytorch.checkpoint import open_pytorch, open_pytorch_sharded

__all__ = ["open_pytorch", "open_pytorch_sharded"]
