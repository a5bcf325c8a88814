"""A chat template of Jinja's as one of Go's text/template, which Ollama renders.

Translated is what the templates of the Phi family consist of: one loop over the messages, conditions on a
message's role, texts joined with ``+``. Whatever else there is makes a template that is not known, and is
named. It is rendered as transformers does it (``trim_blocks``, ``lstrip_blocks``), with a prompt for an
answer at the end, and for messages that call no tools: conditions on these are decided here.

Go's syntax: https://pkg.go.dev/text/template; the names that Ollama gives to it (``.Messages``, ``.Role``,
``.Content``): https://docs.ollama.com/template.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UnknownTemplateError", "go_template"]

_TAG = re.compile(r"\{(?:(\{)|([%#]))([-+]?)(.*?)([-+]?)(?(1)\}|\2)\}(\n?)", re.DOTALL)
_WORD = re.compile(r"\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\w+|==|!=|[-+()\[\].|~,:%*/<>={}]|\S)")
_LONGEST = 1 << 13
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_FIELDS = {"role": ".Role", "content": ".Content"}


class UnknownTemplateError(Exception):
    """A template with something that is not translated; the message says what."""


Condition: TypeAlias = "bool | str"
"""Decided here, or an expression of Go's."""


class _Text(NamedTuple):
    text: str


class _Print(NamedTuple):
    words: list[str]


class _Loop(NamedTuple):
    variable: str
    body: list[_Node]


class _Choice(NamedTuple):
    branches: list[tuple[list[str], list[_Node]]]


_Node: TypeAlias = "_Text | _Print | _Loop | _Choice"


def go_template(template: str, bos: str = "") -> str:
    """Translates a template.

    Args:
        template: Jinja's, with line feeds only.
        bos: What stands for ``bos_token``; "" where the runtime puts that token in front by itself.

    Raises:
        UnknownTemplateError: It has something else than the templates of the Phi family.
    """
    if len(template) > _LONGEST:
        raise UnknownTemplateError(f"more than {_LONGEST} characters")
    try:
        nodes, end = _block(_parts(template.removesuffix("\n")))
        if end:
            raise UnknownTemplateError(f"{end[0]} without a beginning")
        result = "".join(_emit(node, None, bos) for node in nodes)
    except RecursionError:
        raise UnknownTemplateError("too many blocks in blocks") from None
    if '"""' in f'{result}""':  # which ends it in a Modelfile
        raise UnknownTemplateError("quotation marks where they end a Modelfile's text")
    return result


# ------------------------------------------------------------------------------------------------- reading


def _parts(template: str) -> Iterator[tuple[str, str]]:
    """Texts ("", text) and tags ("{", inside), the space around tags as Jinja leaves it."""
    at, strip = 0, False
    for tag in _TAG.finditer(template):
        *kinds, before, inside, after, line_feed = tag.groups()
        kind = kinds[0] or kinds[1]
        text = template[at : tag.start()]
        text = text.lstrip() if strip else text
        if before == "-":
            text = text.rstrip()
        elif kind != "{" and before != "+":  # space at the beginning of the tag's line
            begun = at == 0 or template[at - 1] == "\n"
            text = re.sub(rf"({'^|' if begun else ''}(?<=\n))[ \t]+\Z", "", text)
        yield "", text
        if kind != "#":
            yield kind, inside
        strip = after == "-"
        at = tag.end() - (len(line_feed) if kind == "{" or after == "+" else 0)
    rest = template[at:]
    yield "", rest.lstrip() if strip else rest


def _block(parts: Iterator[tuple[str, str]]) -> tuple[list[_Node], list[str]]:
    """Everything up to a statement that ends a block, and that statement; [] at the end of all."""
    nodes: list[_Node] = []
    for kind, inside in parts:
        if kind == "":
            if "{{" in inside or "{%" in inside:
                raise UnknownTemplateError("braces without an end")
            nodes.append(_Text(inside))
            continue
        words = _WORD.findall(inside)
        match words if kind == "%" else None:
            case None:
                nodes.append(_Print(words))
            case ["for", variable, "in", "messages"]:
                body, end = _block(parts)
                _expect(end, "endfor")
                nodes.append(_Loop(variable, body))
            case ["if", *condition]:
                nodes.append(_choice(condition, parts))
            case ["elif" | "else" | "endif" | "endfor", *_]:
                return nodes, words
            case _:
                raise UnknownTemplateError(" ".join(words))
    return nodes, []


def _choice(condition: list[str], parts: Iterator[tuple[str, str]]) -> _Choice:
    branches = []
    while True:
        body, end = _block(parts)
        branches.append((condition, body))
        match end:
            case ["endif"]:
                return _Choice(branches)
            case ["elif", *condition]:
                continue
            case ["else"]:
                body, end = _block(parts)
                _expect(end, "endif")
                return _Choice([*branches, (["true"], body)])
        raise UnknownTemplateError("an if without its end")


def _expect(end: list[str], word: str) -> None:
    if end != [word]:
        raise UnknownTemplateError(f"no {word}")


# ------------------------------------------------------------------------------------------------- writing


def _emit(node: _Node, variable: str | None, bos: str) -> str:
    """A node in Go's words.

    Args:
        node: The node.
        variable: What a message is called; None outside of the loop.
        bos: See `go_template`.
    """
    match node:
        case _Text(text):
            return _literal(text)
        case _Print(words):
            return "".join(_term(term, variable, bos) for term in _split(words, "+"))
        case _Loop(name, body):
            if variable is not None:
                raise UnknownTemplateError("a loop in a loop")
            return "{{ range .Messages }}" + "".join(_emit(each, name, bos) for each in body) + "{{ end }}"
        case _Choice(branches):
            return _branches(branches, variable, bos)


def _branches(branches: list[tuple[list[str], list[_Node]]], variable: str | None, bos: str) -> str:
    written = ""
    for words, body in branches:
        condition = _condition(words, variable)
        if condition is False:
            continue
        text = "".join(_emit(each, variable, bos) for each in body)
        if condition is True:
            return f"{written}{{{{ else }}}}{text}{{{{ end }}}}" if written else text
        written += f"{{{{ {'else if' if written else 'if'} {condition} }}}}{text}"
    return f"{written}{{{{ end }}}}" if written else ""


def _literal(text: str) -> str:
    if "{{" in text or text.endswith("{"):  # with which Go's own tags begin
        raise UnknownTemplateError(f"the text {text!r}")
    return text


def _term(words: list[str], variable: str | None, bos: str) -> str:
    """A text, or something of a message."""
    words = _bare(words)
    if len(words) == 1 and words[0][0] in "'\"":
        return _literal(_string(words[0]))
    if words == ["bos_token"]:
        return _literal(bos)
    return f"{{{{ {_field(words, variable)} }}}}"


def _condition(words: list[str], variable: str | None) -> Condition:
    words = _bare(words)
    left: list[str] = []
    terms = _split(words, "and")
    for term in terms:
        value = _condition(term, variable) if len(terms) > 1 else _comparison(words, variable)
        if value is False:  # and the others, which may be of tools, are not looked at
            return False
        if value is not True:
            left.append(value)
    if len(left) > 1:
        return f"and {' '.join(f'({value})' for value in left)}"
    return left[0] if left else True


def _comparison(words: list[str], variable: str | None) -> Condition:
    match words:
        case ["true"] | ["add_generation_prompt"]:
            return True
        case ["not", "add_generation_prompt"] | ["'tools'" | '"tools"', "in", _]:
            return False
        case [*field, "==" | "!=" as sign, value] if value[0] in "'\"":
            text = _string(value)
            if not re.fullmatch(r"[\w-]+", text, re.ASCII):
                raise UnknownTemplateError(value)
            return f'{"eq" if sign == "==" else "ne"} {_field(field, variable)} "{text}"'
    return _field(words, variable)


def _field(words: list[str], variable: str | None) -> str:
    """The role or the content of the message: ``message['role']`` or ``message.role``."""
    match words:
        case [name, "[", key, "]"] if name == variable and key[0] in "'\"":
            field = _string(key)
        case [name, ".", field] if name == variable:
            pass
        case _:
            field = ""
    if field not in _FIELDS:
        raise UnknownTemplateError(" ".join(words) or "nothing where something must be")
    return _FIELDS[field]


def _bare(words: list[str]) -> list[str]:
    """Words without parentheses around all of them."""
    while len(words) > 1 and words[0] == "(" and words[-1] == ")":
        depths = _depths(words)
        if 0 in depths[:-1]:
            break
        words = words[1:-1]
    return words


def _split(words: list[str], sign: str) -> list[list[str]]:
    """Words between signs that stand in no parentheses."""
    found: list[list[str]] = [[]]
    for word, depth in zip(words, _depths(words), strict=True):
        if word == sign and depth == 0:
            found.append([])
        else:
            found[-1].append(word)
    return found


def _depths(words: list[str]) -> list[int]:
    depth, found = 0, []
    for word in words:
        depth += (word == "(") - (word == ")")
        found.append(depth)
    return found


def _string(word: str) -> str:
    """The text of a literal."""

    def escaped(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise UnknownTemplateError(word)
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", escaped, word[1:-1], flags=re.DOTALL)
