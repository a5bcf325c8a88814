"""What follows from the sizes of pictures, and from which of their patches show something.

GenAI hands over all pictures of a prompt at once: ``pixel_values`` (pictures, crops, 3, height, width), with
more crops than a picture may have, and ``image_sizes`` (pictures, 2) in pixels; for some models also
``image_attention_mask`` (pictures, crops, rows of patches, columns), 1 for a patch that shows something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from phiconv_formats.onnx.counting import END, Counting

if TYPE_CHECKING:
    from phiconv.ir.senses import Vision
    from phiconv_formats.onnx.graph import Graph

__all__ = ["Pictures"]


class Pictures:
    """Which crops there are, which patches of these show something, and where every feature comes from."""

    def __init__(self, graph: Graph, parameters: Vision) -> None:
        self._graph = graph
        self._count = c = Counting(graph, "/vision/places")
        self._side, self._patches = parameters.crop_size or 0, parameters.patches
        shape = ("num_images", "max_num_crops", 3, self._side, self._side)
        self._pixels = graph.input("pixel_values", TensorProto.FLOAT, shape)
        sizes = graph.input("image_sizes", TensorProto.INT64, ("num_images", 2))
        grid = c.node("Div", sizes, c.number(self._side))
        self._down, self._across = (c.node("Gather", grid, c.number(i), axis=1) for i in (0, 1))
        self._crops = c.add(c.mul(self._down, self._across), 1)
        self._numbers = c.numbers(c.size(self._pixels, 1))
        self._there = c.where_true(c.node("Less", self._numbers, c.column(self._crops)))
        self._mask = ""

    def crops(self) -> str:
        """The crops of all pictures, (crops, 3, height, width); of each the small view of the whole first."""
        return self._of_crops(self._pixels, 3, self._side, self._side)

    def _of_crops(self, x: str, *shape: int) -> str:
        """Of (pictures, crops, ...) what belongs to crops that are there: (crops, ...)."""
        c = self._count
        return c.node("Gather", c.node("Reshape", x, c.vector([-1, *shape])), self._there, axis=0)

    def shown(self) -> str:
        """Which patches show something, bool of shape (crops, rows, columns); from here on it counts."""
        shape = ("num_images", "max_num_crops", self._patches, self._patches)
        given = self._graph.input("image_attention_mask", TensorProto.FLOAT, shape)
        half = self._graph.constant(np.array(0.5, np.float32))
        self._mask = self._count.node("Greater", given, half)
        return self._of_crops(self._mask, self._patches, self._patches)

    def place_ids(self, shown: str) -> str:
        """The row of a square table of positions for each patch: (crops, patches).

        The ``n`` rows of patches that show something are spread over those of the table: row ``i`` has
        place ``i * side // n``. Columns alike.
        """
        c, side = self._count, self._patches
        steps = c.vector([i * side for i in range(side)])
        one, places = c.number(1), []
        for axis in (2, 1):  # the first column says how many rows there are
            first = c.node("Gather", c.to_int(shown), c.number(0), axis=axis)
            count = c.node("Max", c.total(first, 1), one)
            places.append(c.node("Div", steps, c.column(count)))
        down = c.node("Unsqueeze", c.times(places[0], side), c.vector([2]))
        ids = c.node("Add", down, c.node("Unsqueeze", places[1], c.vector([1])))
        return c.node("Reshape", c.node("Where", shown, ids, c.number(0)), c.vector([-1, side * side]))

    def places(self, side: int) -> str:
        """For every feature of every picture the row of a table: crop by crop ``side * side`` patches.

        Behind these the table has the end of a row, and the separator.
        """
        c = self._count
        rows, columns = self._features(side)
        row = c.add(columns, 1)  # features of a row of all crops
        large = c.mul(rows, row)
        count = c.add(large, 1 + side * (side + 1))
        picture, place = c.ragged(count)
        row, large, across = (c.node("Gather", x, picture, axis=0) for x in (row, large, self._across))
        first = c.node("Gather", c.starts(self._crops), picture, axis=0)
        whole = self._of_whole(place, row, across, side)
        small = self._of_small(c.node("Sub", place, c.add(large, 1)), side)
        in_whole = c.node("Less", place, large)
        inner = c.node("Where", in_whole, whole[0], small[0])
        in_small = c.node("Not", in_whole)
        either = (c.node("And", a, b) for a, b in ((in_whole, whole[1]), (in_small, small[1])))
        ends = c.node("Or", *either)
        patch = c.node("Add", c.times(first, side * side), inner)
        end = c.times(c.total(self._crops, 0), side * side)
        separator = c.add(end, 1)
        found = c.node("Where", ends, end, patch)
        return c.node("Where", c.node("Equal", place, large), separator, found)

    def _features(self, side: int) -> tuple[str, str]:
        """How many rows and columns of features the crops of each picture have, side by side."""
        c = self._count
        if not self._mask:
            return c.times(self._down, side), c.times(self._across, side)
        crop = c.add(self._numbers, -1)  # the first is the small view
        across, crops = c.column(self._across), c.column(self._crops)
        real = c.node(
            "And", c.node("GreaterOrEqual", crop, c.number(0)), c.node("Less", self._numbers, crops)
        )
        leftmost = c.node("Equal", c.node("Mod", crop, across), c.number(0))
        return (
            self._shown_in(c.node("And", real, leftmost), 3, side),
            self._shown_in(c.node("And", real, c.node("Less", crop, across)), 2, side),
        )

    def _shown_in(self, which: str, axis: int, side: int) -> str:
        """Of the first row or column of some crops how many features show something, by picture."""
        c, step = self._count, self._patches // side
        line = c.node("Gather", c.to_int(self._mask), c.number(0), axis=axis)
        ends = c.vector([0]), c.vector([END]), c.vector([2]), c.vector([step])
        counts = c.total(c.node("Slice", line, *ends), 2)
        return c.total(c.mul(counts, c.to_int(which)), 1)

    def _of_whole(self, place: str, row: str, across: str, side: int) -> tuple[str, str]:
        """In the rows of all crops: which patch of the picture's, and whether it is the end of a row."""
        c = self._count
        down, right = c.node("Div", place, row), c.node("Mod", place, row)
        crop = c.mul(c.div(down, side), across)
        crop = c.add(c.node("Add", crop, c.div(right, side)), 1)  # the first is the small one
        inner = c.node("Add", c.times(c.mod(down, side), side), c.mod(right, side))
        ends = c.node("Equal", right, c.add(row, -1))
        return c.node("Add", c.times(crop, side * side), inner), ends

    def _of_small(self, place: str, side: int) -> tuple[str, str]:
        """The same in the small view; what stands before it is counted below 0, and not looked at."""
        c = self._count
        down, right = c.div(place, side + 1), c.mod(place, side + 1)
        ends = c.node("Equal", right, c.number(side))
        return c.node("Add", c.times(down, side), right), ends
