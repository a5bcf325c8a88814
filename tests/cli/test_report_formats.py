"""What `phiconv formats` says: every recipe is there, and no line is too long to read."""

from __future__ import annotations

from phiconv.cli.report_formats import families, formats_lines
from phiconv.recipes import TARGETS


def test_every_recipe_is_named():
    for target in TARGETS.values():
        groups = families(target.DEFAULTS)
        named = [stem + size for stems, sizes in groups for stem in stems for size in ("", *sizes)]
        assert sorted(named) == sorted(target.DEFAULTS)


def test_sizes_of_blocks_stand_by_themselves():
    assert families(["f16", "a", "a-g64", "b", "b-g64", "c", "c-channel"]) == [
        (["f16"], []),
        (["a", "b"], ["-g64"]),
        (["c"], ["-channel"]),
    ]


def test_lines_can_be_read():
    lines = formats_lines()
    assert "    and each of these with -g16, -g64, -g128, -g256" in lines
    assert "  mlx (a folder): read and written; a folder for Apple MLX (mlx-lm, LM Studio)" in lines
    assert "  onnx (.onnx, a folder): read and written; ONNX Runtime and ONNX Runtime GenAI" in lines
    assert max(map(len, lines)) < 180
