"""What `phiconv formats` says: the names of all recipes, as they are built, in lines that can be read."""

from __future__ import annotations

import itertools
import re

from phiconv.cli.report_formats import family_lines, formats_lines
from phiconv.recipes import TARGETS


def spelled_out(lines):
    """Every name that the lines of a family stand for; the usual number has no ending."""
    text, _, numbers = " ".join(map(str.strip, lines)).partition("   N = ")
    for name in text.split(", "):
        choices = [
            one.split("|") if one else ["", *maybe.split("|")] if maybe else [plain]
            for one, maybe, plain in re.findall(r"\((.+?)\)|\[(.+?)\]|([^(\[]+)", name)
        ]
        for words in map("".join, itertools.product(*choices)):
            sizes = [n for n in numbers.split(", ") if "usual" not in n] if words.endswith("-gN") else [""]
            yield from (words.replace("-gN", f"-g{size}") for size in sizes)


def test_every_recipe_is_named():
    for target in TARGETS.values():
        named = [name for family in target.RECIPES.families for name in spelled_out(family_lines(family))]
        assert sorted(named) == sorted(target.RECIPES.names())


def test_lines_can_be_read():
    lines = formats_lines()
    assert "  (int4|int8)[-rtn|-qdq][-asym][-gN]   N = 16, 32 (usual), 64, 128, 256" in lines
    assert "  int4(-asym|-sym)[-gN|-channel]   N = 32, 64, 128 (usual)" in lines
    assert "  mlx (a folder): read and written; a folder for Apple MLX (mlx-lm, mlx-vlm, LM Studio)" in lines
    assert "  onnx (.onnx, a folder): read and written; ONNX Runtime and ONNX Runtime GenAI" in lines
    assert max(map(len, lines)) < 180
    families = [family for target in TARGETS.values() for family in target.RECIPES.families]
    assert max(len(line) for family in families for line in family_lines(family)) <= 100
