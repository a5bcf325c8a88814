"""A machine that runs the pickle of a checkpoint without running anything.

It has a stack and a memo like pickle's own, and builds dicts, lists, tuples, numbers, texts and records of
tensors. A name in the pickle stays a name. "Calls" are the few of `_CALLS`, each a function below that looks
at its arguments and makes a record of them. Everything else ends the walk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from phiconv.errors import UnsafePickleError
from phiconv_formats.pytorch.opcodes import walk
from phiconv_formats.pytorch.records import DTYPES, STORAGES, Global, StorageRecord, TensorRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from phiconv_formats.pytorch.opcodes import Opcode, Stream

__all__ = ["Pickled", "run"]

_MAX_DIMENSIONS = 64
_KEYS = (str, int, float, bool, type(None))  # a nested tuple could take for ever to hash


class Pickled(NamedTuple):
    """What a pickle holds.

    Attributes:
        value: What it builds.
        end: The byte behind its end.
        storages: Every storage that it speaks of, by key; of several types, the first.
    """

    value: Any
    end: int
    storages: dict[str, StorageRecord]


def run(stream: Stream, start: int = 0) -> Pickled:
    """Runs one pickle.

    Raises:
        UnsafePickleError: It asks for anything but data and tensors.
        MalformedFileError: It is no well-formed pickle.
    """
    return _Machine(stream).run(start)


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """What a call or an opcode was wrong about."""


class _Machine:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRecord] = {}

    def run(self, start: int) -> Pickled:
        for opcode in walk(self.stream, start):
            if opcode.name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise self.stream.fail(f"the pickle ends with {len(self.stack)} values", opcode.offset)
                return Pickled(self.stack[0], opcode.offset + 1, self.storages)
            try:
                self.step(opcode)
            except _Refused as error:
                self.refuse(opcode, str(error))
        raise AssertionError("a walk ends with STOP or an error")

    def refuse(self, opcode: Opcode, message: str) -> NoReturn:
        raise UnsafePickleError(
            message,
            path=self.stream.path,
            at=self.stream.at(opcode.offset),
            hint="nothing was run; take the model from its author as .safetensors",
        )

    def step(self, opcode: Opcode) -> None:
        name, argument = opcode.name, opcode.argument
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _MAKERS:
            self.stack.append(_MAKERS[name]())
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in {"BINPUT", "LONG_BINPUT", "MEMOIZE"}:
            self.memo[len(self.memo) if argument is None else argument] = self.top(opcode)
        elif name in {"BINGET", "LONG_BINGET"}:
            if argument not in self.memo:
                raise self.stream.fail(f"nothing is in memo {argument}", opcode.offset)
            self.stack.append(self.memo[argument])
        elif name.startswith("TUPLE"):
            self.stack.append(tuple(self.pop(opcode, _ITEMS[name])))
        elif name in _ITEMS:
            self.fill(opcode)
        elif name not in {"PROTO", "FRAME"}:
            self.name_or_call(opcode)

    def fill(self, opcode: Opcode) -> None:
        """Puts items into the container below them."""
        items = self.pop(opcode, _ITEMS[opcode.name])
        container = self.top(opcode)
        if opcode.name.startswith("APPEND"):
            if type(container) is not list:
                raise self.stream.fail("an item for something that is no list", opcode.offset)
            container.extend(items)
        else:
            if type(container) is not dict or len(items) % 2:
                raise self.stream.fail("an item for something that is no dict", opcode.offset)
            container.update(_pairs(items[0::2], items[1::2]))

    def name_or_call(self, opcode: Opcode) -> None:
        name = opcode.name
        if name in {"GLOBAL", "INST"}:
            self.stack.append(_known(*opcode.argument, call=name == "INST"))
        elif name == "STACK_GLOBAL":
            module, attribute = self.pop(opcode, 2)
            if type(module) is not str or type(attribute) is not str:
                raise _Refused("a name made of something that is no text")
            self.stack.append(_known(module, attribute))
        elif name == "BINPERSID":
            (description,) = self.pop(opcode, 1)
            storage = _storage(description)
            self.storages.setdefault(storage.key, storage)
            self.stack.append(storage)
        elif name == "REDUCE":
            function, arguments = self.pop(opcode, 2)
            self.stack.append(_call(function, arguments))
        elif name == "BUILD":
            (state,) = self.pop(opcode, 1)
            # An OrderedDict of torch has attributes ("_metadata": versions of modules): no weights.
            if type(self.top(opcode)) is not dict or type(state) is not dict:
                raise _Refused("it sets the state of an object (BUILD)")
        else:
            raise _Refused(f"it uses {name}, which no checkpoint of tensors needs")

    def top(self, opcode: Opcode) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.stream.fail(f"{opcode.name} finds an empty stack", opcode.offset)
        return self.stack[-1]

    def pop(self, opcode: Opcode, count: int | None) -> list[Any]:
        """The topmost values, the lowest one first; without a count, those above the last mark."""
        if count is None:
            if not self.marks:
                raise self.stream.fail(f"{opcode.name} finds no mark", opcode.offset)
            start = self.marks.pop()
        elif (start := len(self.stack) - count) < (self.marks[-1] if self.marks else 0):
            raise self.stream.fail(f"{opcode.name} finds an empty stack", opcode.offset)
        items = self.stack[start:]
        del self.stack[start:]
        return items


_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINSTRING "
    "BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8".split()
)
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_ITEMS = {
    "TUPLE": None,
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "APPEND": 1,
    "APPENDS": None,
    "SETITEM": 2,
    "SETITEMS": None,
}
"""How many values go into a container; None for all above the mark."""


def _pairs(keys: list[Any], values: list[Any]) -> dict[Any, Any]:
    for key in keys:
        if type(key) not in _KEYS:
            raise _Refused(f"a dict with a key of type {type(key).__name__}")
    return dict(zip(keys, values, strict=True))


def _known(module: str, attribute: str, *, call: bool = False) -> Global:
    name = f"{module}.{attribute}"
    if call or name not in {*_CALLS, *STORAGES, *DTYPES}:
        raise _Refused(f"it asks for {name}, which is no part of a tensor")
    return Global(name)


def _storage(description: Any) -> StorageRecord:
    """A storage by its persistent id: "storage", class, key, device, count; older files add a None."""
    match description:
        case ("storage", Global(name), str(key), str(), count) if name in STORAGES and _is_size(count):
            return StorageRecord(key, STORAGES[name], count)
        case ("storage", Global(name), str(key), str(), count, None) if name in STORAGES and _is_size(count):
            return StorageRecord(key, STORAGES[name], count)
    raise _Refused("a persistent id that is no storage")


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or function.name not in _CALLS or type(arguments) is not tuple:
        what = function.name if isinstance(function, Global) else "something that is no function"
        raise _Refused(f"it calls {what}")
    result = _CALLS[function.name](arguments)
    if result is None:
        raise _Refused(f"it calls {function.name} with arguments that describe nothing")
    return result


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any] | None:
    match arguments:
        case ():
            return {}
        case (list(items),) if all(type(i) in {list, tuple} and len(i) == 2 for i in items):
            return _pairs([key for key, _ in items], [value for _, value in items])
    return None


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...] | None:
    return arguments[0] if len(arguments) == 1 and _are_sizes(arguments[0]) else None


def _tensor(arguments: tuple[Any, ...]) -> TensorRecord | None:
    """Storage, offset, shape, stride; what follows is about gradients."""
    if not 4 <= len(arguments) <= 7:
        return None
    storage, offset, shape, stride = arguments[:4]
    good = (
        isinstance(storage, StorageRecord) and _is_size(offset) and _are_sizes(shape) and _are_sizes(stride)
    )
    if not good or len(shape) != len(stride):
        return None
    return TensorRecord(storage, offset, shape, stride, storage.encoding)


def _tensor_with_dtype(arguments: tuple[Any, ...]) -> TensorRecord | None:
    """The same, of a dtype that has no storage class; the seventh argument names it."""
    tensor = _tensor(arguments[:4])
    if tensor is None or not 7 <= len(arguments) <= 8 or not isinstance(arguments[6], Global):
        return None
    encoding = DTYPES.get(arguments[6].name)
    return None if encoding is None else replace(tensor, encoding=encoding)


def _parameter(arguments: tuple[Any, ...]) -> TensorRecord | None:
    is_tensor = 3 <= len(arguments) <= 4 and isinstance(arguments[0], TensorRecord)
    return arguments[0] if is_tensor else None


def _is_size(value: Any) -> bool:
    # bool is an int to Python and no size.
    return type(value) is int and 0 <= value < 1 << 63


def _are_sizes(values: Any) -> bool:
    return type(values) is tuple and len(values) <= _MAX_DIMENSIONS and all(map(_is_size, values))


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
