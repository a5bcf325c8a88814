"""The pages under docs/: links, commands, examples, and the table of contents of the site."""

from __future__ import annotations

import doctest
import functools
import re
import shlex
from typing import TYPE_CHECKING

import click
import pytest
import yaml
from click.testing import CliRunner

from paths import ROOT
from phiconv.cli import main
from phiconv.spelling import folded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WITH_COMMANDS = [*PAGES, ROOT / "README.md"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def anchors(page: Path) -> set[str]:
    """What a link may name behind "#": the headings, as GitHub and mkdocs write them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages_and_headings(page):
    """The pages travel without the repository: in wheels, in bundles, as a site."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if other not in PAGES or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_table_of_contents():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    kinds = {kind: named for entry in nav for kind, named in entry.items()}
    assert {*kinds} == {"Home", "Tutorial", "How-to", "Explanation", "Reference"}
    assert kinds.pop("Home") == "index.md"
    found = ["index.md", *(page for pages in kinds.values() for entry in pages for page in entry.values())]
    assert sorted(found) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page for page in found[1:] if f"]({page})" not in index] == []


# ------------------------------------------------------------------------------------------------- commands


def blocks(text: str) -> Iterator[str]:
    """Fenced and indented blocks of code."""
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each phiconv command that blocks show; not of forms, such as ``[options]``."""
    for block in blocks(text):
        lines = iter(block.splitlines())
        for line in lines:
            if not line.strip().startswith("phiconv "):
                continue
            whole = line.strip()
            while (words := words_of(whole)) is None:
                whole = whole.removesuffix("\\") + "\n" + next(lines)
            explained = re.search(r"\w {3,}[a-z]", line)  # as in a list of commands
            if not explained and not any(word.startswith("[") or word == "..." for word in words):
                yield words[1 : words.index("&&")] if "&&" in words else words[1:]


def words_of(line: str) -> list[str] | None:
    """The words as a shell has them, or None if the command goes on in the next line."""
    if line.endswith("\\"):
        return None
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an open quotation
        return None


def complaint(words: list[str]) -> str | None:
    """What click says against a command line, without running it."""
    first = folded(words[0])
    command = main.commands[first if first in main.commands else "convert"]
    rest = words[1:] if first in main.commands else words
    context = click.Context(command)
    try:
        values, extra, _ = command.make_parser(context).parse_args(list(rest))
        for option in command.params:
            if isinstance(option.type, click.Choice) and isinstance(values.get(option.name), str):
                option.type.convert(values[option.name], option, context)
    except click.UsageError as error:
        return error.format_message()
    return f"too much: {extra}" if extra else None


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_can_be_parsed(page):
    text = page.read_text(encoding="utf-8")
    assert [(words, told) for words in commands(text) if (told := complaint(words))] == []


def test_commands_are_found_and_judged():
    fenced = "```sh\nphiconv A b.gguf --q4  # ...\nphiconv plan A \\\n    b --no-such\n```\n"
    text = fenced + "\n    phiconv A B [options]\n    phiconv formats         list formats\n"
    found = list(commands(text))
    assert found == [["A", "b.gguf", "--q4"], ["plan", "A", "b", "--no-such"]]
    assert complaint(found[0]) is None
    assert "--no-such" in (complaint(found[1]) or "")
    assert complaint(["A", "B", "C", "D"])


def test_the_tutorial_runs(tmp_path, monkeypatch):
    """All of its commands but the two that take half a minute each."""
    monkeypatch.chdir(tmp_path)
    text = (
        (DOCS / "tutorial.md")
        .read_text(encoding="utf-8")
        .replace("fixtures/", f"{ROOT.as_posix()}/fixtures/")
    )
    quick = [words for words in commands(text) if words[0] != "evaluate" and "best" not in words]
    for words in quick:
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, (words, done.output)
    assert {"tiny.gguf", "tiny-for-ollama.gguf", "tiny-q8.gguf"} <= {path.name for path in tmp_path.iterdir()}


def test_the_examples_of_concepts_are_right():
    failed, tried = doctest.testfile(str(DOCS / "concepts.md"), module_relative=False, encoding="utf-8")
    assert tried > 15
    assert failed == 0
