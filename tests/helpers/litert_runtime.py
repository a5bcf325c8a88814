"""The real LiteRT, computing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

HIDDEN = np.float32(-0.7 * np.finfo(np.float32).max)
"""What the runtime adds to the score of a key that is not seen."""


class Model:
    """A graph with its cache, fed as LiteRT-LM does it.

    Args:
        interpreter: The module ``ai_edge_litert.interpreter``.
        path: A .tflite file.
        context: Positions of the cache, where its length is open.
        plain: Without XNNPACK.
    """

    def __init__(
        self, interpreter: ModuleType, path: Path, context: int = 64, *, plain: bool = False
    ) -> None:
        kinds = interpreter.OpResolverType
        kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else kinds.AUTO
        self.interpreter = interpreter.Interpreter(
            str(path), num_threads=1, experimental_op_resolver_type=kind
        )
        self.runners = {
            name: self.interpreter.get_signature_runner(name)
            for name in self.interpreter.get_signature_list()
        }
        details = self.runners["decode"].get_input_details()
        self.dynamic = -1 in details["mask"]["shape_signature"]
        self.context = context if self.dynamic else int(details["mask"]["shape"][3])
        caches = {n: d["shape_signature"] for n, d in details.items() if n.startswith("kv_cache")}
        shapes = {n: [self.context if size == -1 else size for size in shape] for n, shape in caches.items()}
        self.cache = {n: np.zeros(shape, np.float32) for n, shape in shapes.items()}
        self.position = 0

    def _call(self, name: str, ids: list[int], length: int):
        tokens, positions = np.zeros((1, length), np.int32), np.zeros(length, np.int32)
        tokens[0, : len(ids)] = ids
        positions[: len(ids)] = np.arange(self.position, self.position + len(ids))
        mask = np.full((1, 1, length, self.context), HIDDEN)
        for row, position in enumerate(positions[: len(ids)]):
            mask[0, 0, row, : position + 1] = 0
        result = self.runners[name](tokens=tokens, input_pos=positions, mask=mask, **self.cache)
        self.cache = {n: value for n, value in result.items() if n.startswith("kv_cache")}
        self.position += len(ids)
        return result.get("logits")

    def prefill(self, ids: list[int]) -> None:
        """Puts tokens into the cache, in the shortest prefill that holds them."""
        lengths = {n: int(n.rpartition("_")[2]) if "_" in n else len(ids) for n in self.runners}
        fitting = [n for n in self.runners if n != "decode" and lengths[n] >= len(ids)]
        name = min(fitting, key=lengths.__getitem__)
        self._call(name, ids, lengths[name])

    def decode(self, token: int):
        """The logits behind one more token."""
        return self._call("decode", [token], 1)[0, 0]

    def logits(self, ids, chunks: tuple[int, ...] = ()):
        """Logits of the tokens behind the chunks, which are prefilled."""
        ids, at = list(map(int, ids)), 0
        for count in chunks:
            self.prefill(ids[at : at + count])
            at += count
        return np.stack([self.decode(token) for token in ids[at:]])
