"""The page of a report: everybody can read it, it needs nothing else, and words of files are only words."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest

import phiconv
from phiconv.reporting import page as pages
from phiconv.reporting.numbers import Token
from phiconv.reporting.page import page

HOSTILE = '<script>alert(1)</script> "&amp; \u202eevil\u0000\ud800 ' * 8
VOID = {"meta", "br", "wbr", "circle", "line", "path", "rect"}


class Tree(HTMLParser):
    """The elements of a page: names, attributes, text, and what each is in."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, name, attributes):
        element = {"name": name, "attributes": dict(attributes), "text": "", "inside": [*self._open]}
        assert len(attributes) == len(element["attributes"])
        self.elements.append(element)
        if name not in VOID:
            self._open.append(element)

    def handle_startendtag(self, name, attributes):
        assert name in VOID
        self.handle_starttag(name, attributes)

    def handle_endtag(self, name):
        assert self._open.pop()["name"] == name

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def find(self, name, inside=None):
        return [e for e in self.elements if e["name"] == name and (inside is None or inside in e["inside"])]


@pytest.fixture(scope="module")
def models(make_miniature, tmp_path_factory):
    """A model, and what became of it."""
    root = tmp_path_factory.mktemp("models")
    source = make_miniature.make_miniature(root / "source")
    for quant in ("Q8_0", "Q4_0"):
        phiconv.convert(source, root / f"{quant}.gguf", quant=quant)
    return source, root / "Q8_0.gguf", root / "Q4_0.gguf"


@pytest.fixture(scope="module")
def report(models, tmp_path_factory):
    """A report with a text."""
    path = tmp_path_factory.mktemp("page") / "r.html"
    text = (HOSTILE + "plain words\n").replace("\ud800", "") * 3
    return phiconv.report(models[0], models[1:], path, text=text, context=32), path


@pytest.fixture(scope="module")
def text(report):
    return report[1].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(text):
    return Tree(text)


@pytest.fixture(scope="module")
def style(tree):
    return tree.find("style")[0]["text"]


# --------------------------------------------------------------------------------------- for everybody


def test_language_title_and_headings(tree):
    assert tree.find("html")[0]["attributes"]["lang"] == "en"
    (title,) = tree.find("title", tree.find("head")[0])
    (first,) = tree.find("h1")
    assert title["text"] == first["text"] == "What became of source"
    levels = [int(e["name"][1]) for e in tree.elements if re.fullmatch("h[1-6]", e["name"])]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(tree.find("main")) == 1


def test_pictures_have_a_title_and_a_description(tree):
    pictures = tree.find("svg")
    # Sizes, memory, quality, the curves; bytes by role; of each candidate a grid, points, three histograms.
    assert len(pictures) == 4 + 3 + 2 * (1 + 1 + 3)
    names = [e["attributes"]["id"] for e in tree.elements if "id" in e["attributes"]]
    assert len(names) == len(set(names))
    for picture in pictures:
        assert picture["attributes"]["role"] == "img"
        parts = [*tree.find("title", picture), *tree.find("desc", picture)]
        assert picture["attributes"]["aria-labelledby"].split() == [p["attributes"]["id"] for p in parts]
        assert all(part["text"] for part in parts)


def test_each_picture_has_its_numbers_in_a_table(tree):
    for picture in tree.find("svg"):
        card = next(e for e in reversed(picture["inside"]) if e["name"] == "section")
        assert tree.find("table", card), picture["text"][:80]


def test_tables_say_what_their_rows_and_columns_are(tree):
    for table in tree.find("table"):
        (caption,) = tree.find("caption", table)
        assert caption["text"]
        columns = tree.find("th", tree.find("thead", table)[0])
        assert all(th["attributes"] == {"scope": "col"} and th["text"] for th in columns)
        rows = tree.find("tr", tree.find("tbody", table)[0])
        for row in rows:
            (head,) = tree.find("th", row)
            assert head["attributes"] == {"scope": "row"}
            assert len(tree.find("td", row)) == len(columns) - 1


def luminance(colour):
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_enough_contrast(style, mode):
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[mode == "dark"]))
    assert len(colours) == 5 + 7 + 6
    pairs = [
        (text, on) for on in ("page", "card") for text in ("text", "muted", *(f"c{i}" for i in range(7)))
    ]
    pairs += [("text", f"h{i}") for i in range(6)]
    found = {pair: contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert {pair: value for pair, value in found.items() if value < 4.5} == {}
    assert set(re.findall(r"var\(--(\w+)\)", style)) == {*colours, "c"}


def test_nothing_is_told_by_colour_alone(tree, style):
    lines = {re.search(rf"\.shades \.t{shade} {{.*(border-bottom.*);", style)[1] for shade in range(1, 6)}
    assert len(lines) == 5
    for name in ("memory", "curves"):
        (picture,) = (e for e in tree.find("svg") if e["attributes"]["aria-labelledby"].startswith(name))
        lines = [
            e["attributes"]["class"] for e in tree.find("path", picture) if "line" in e["attributes"]["class"]
        ]
        letters = [e for e in tree.find("text", picture) if "name" in e["attributes"].get("class", "")]
        assert [e["text"] for e in letters] == ["A", "B", "C"][-len(lines) :]
        assert len({line.split()[-1] for line in lines}) == len(lines)  # dashes
    cells = [e for e in tree.find("g") if e["attributes"]["class"] == "cells"]
    assert [len(tree.find("tspan", cell)) for cell in cells] == [9, 9]  # of each matrix


# ------------------------------------------------------------------------------------------ by itself


def test_it_needs_nothing_else(text, tree, style):
    assert not re.search(r"https?:|//|url\(|@import|javascript|<script|<link|<iframe|<img", text)
    assert not {name for e in tree.elements for name in e["attributes"]} & {"src", "href", "style"}
    assert not [n for e in tree.elements for n in e["attributes"] if n.startswith("on")]
    used = {name for e in tree.elements for name in e["attributes"].get("class", "").split()}
    assert used - {"k0"} <= set(re.findall(r"\.([a-z]\w*)", style))


def test_the_same_bytes_each_time(models, report, tmp_path):
    again = tmp_path / "again.html"
    text = (HOSTILE + "plain words\n").replace("\ud800", "") * 3
    opened = [phiconv.open_model(path) for path in models]
    found = phiconv.report(opened[0], opened[1:], again, text=text, context=32, jobs=1)
    assert again.read_bytes() == report[1].read_bytes()
    assert found.text.evaluations == report[0].text.evaluations


def test_words_of_files_are_words(report, text, tree):
    assert "\u202e" not in text
    stored = dataclasses.replace(report[0].original, name=HOSTILE, roles=((HOSTILE, ((HOSTILE, 1.0),)),))
    first = report[0].candidates[0]
    origin = dataclasses.replace(first.origin, facts=((HOSTILE, HOSTILE),), outputs=((HOSTILE, HOSTILE),))
    candidate = dataclasses.replace(first, stored=dataclasses.replace(stored, letter="B"), origin=origin)
    found = dataclasses.replace(report[0], original=stored, candidates=(candidate,), text=None)
    hostile = Tree(page(found).decode())
    assert {e["name"] for e in hostile.elements} <= {e["name"] for e in tree.elements}
    assert "<script>alert(1)</script>" in hostile.find("h1")[0]["text"]
    assert "\\u202eevil\\x00\\ud800" in hostile.find("h1")[0]["text"]


def test_without_a_text_it_says_so(report):
    found = page(dataclasses.replace(report[0], text=None)).decode()
    assert "No text was given." in found
    assert "Along the text" not in found
    assert "perplexity" not in found


def test_32_layers_are_below_300_kilobytes(report):
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    rows = tuple(tuple(0.07123 + 0.001 * (layer * 7 + i) for i in range(7)) for layer in range(32))
    likeliest = (("understanding", 0.123), ("information", 0.0712), ("something", 0.0345))
    token = Token(" knowledge", 0.0123, likeliest, likeliest)
    candidate = report[0].candidates[0]
    grid = dataclasses.replace(candidate.errors.grid, kinds=kinds, layers=rows)
    candidate = dataclasses.replace(candidate, errors=dataclasses.replace(candidate.errors, grid=grid))
    passage = dataclasses.replace(report[0].text.passages[0], tokens=(token,) * 105)
    words = dataclasses.replace(
        report[0].text,
        evaluations=report[0].text.evaluations[:1] * 4,
        starts=tuple(range(0, 40000, 1000)),
        curves=((0.01234,) * 40,) * 4,
        passages=(passage,) * 4,
    )
    data = page(dataclasses.replace(report[0], candidates=(candidate,) * 4, text=words))
    assert 100_000 < len(data) < 300_000


def test_a_model_is_no_different_from_itself(models, tmp_path):
    found = phiconv.report(models[0], [models[0]], tmp_path / "r.html", text="Words. " * 40, context=16)
    assert found.text.evaluations[0].divergence.maximum == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "No matrix has an error" in text
    assert "no error" in text


def test_the_style_is_a_file_of_the_package():
    assert pages.Path(pages.__file__).with_name("style.css").is_file()
