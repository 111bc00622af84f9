"""A reader of pickles that runs nothing: it follows the opcodes itself and makes plain values and tensors only.

Python's unpickler imports and calls what a pickle names, and a few bytes may make it fill the memory. Here every opcode
that ``torch.save`` writes has a handler of its own, their number is bounded, and nothing is ever imported or called.
Text, numbers, tuples, lists of text, dictionaries, tensors and `Inert` objects are kept; all else is dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from math import prod
from typing import Any

import torch
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line, plural

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MOST_OPCODES = 600_000
"""Twice those of the largest published training state, of yolov7-e6e with its average and its optimiser."""
MOST_TENSORS = 30_000
MOST_DIMENSIONS = 8
MOST_NUMBER = 2**62
MOST_CHARACTERS = 1000
"""Longer texts are dropped: no name is as long."""


class CheckpointError(UserError):
    """A file that is not a readable checkpoint; nothing in it was run."""


class Inert:
    """Replaces an object of a foreign class: it keeps its state and does nothing."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


class Known(Enum):
    """What a pickle may name, beside the types of storages; everything else is foreign."""

    TENSOR = "torch._utils", "_rebuild_tensor_v2"
    PARAMETER = "torch._utils", "_rebuild_parameter"
    DICTIONARY = "collections", "OrderedDict"
    FOREIGN = "", ""


_KNOWN = {known.value: known for known in Known}


DROPPED = object()
"""Stands for every value that is not kept."""

ReadStorage = Callable[[torch.dtype, str, int], Tensor]


def read_pickle(data: bytes, read_storage: ReadStorage) -> Any:
    """Read a pickle.

    Args:
        data: The pickle.
        read_storage: Returns the storage of a type, a key and a number of elements as a flat tensor.

    Raises:
        CheckpointError: It is damaged, is hostile, or holds what ``torch.save`` never writes.
    """
    reader = _Reader(data, read_storage)
    try:
        for _ in range(MOST_OPCODES):
            opcode = data[reader.position]
            reader.position += 1
            if opcode == STOP:
                return reader.stack.pop()
            if opcode not in HANDLERS:
                raise CheckpointError(f"its pickle has opcode 0x{opcode:02x}, which torch.save never writes")
            HANDLERS[opcode](reader)
    except (IndexError, TypeError, ValueError, RuntimeError, struct.error) as error:
        raise CheckpointError(f"its pickle is damaged ({type(error).__name__}: {one_line(error):.100})") from None
    raise CheckpointError(f"its pickle has more than the {MOST_OPCODES:,} opcodes that it may have")


def resolve(module: str, name: str) -> torch.dtype | Known:
    """Return what a pickle means by a name, without importing it."""
    if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
        return STORAGE_DTYPES[name]
    return _KNOWN.get((module, name), Known.FOREIGN)


class _Reader:
    """The machine that pickles are written for: a stack with marks, and a memo."""

    def __init__(self, data: bytes, read_storage: ReadStorage) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self._read_storage, self._num_tensors = read_storage, 0

    def take(self, count: int) -> bytes:
        """Return the next bytes of the pickle."""
        end = self.position + count
        if end > len(self.data):
            raise CheckpointError("its pickle is cut off")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def take_line(self) -> str:
        """Return the next line of the pickle."""
        line = self.take(self.data.index(b"\n", self.position) - self.position)
        self.position += 1
        return line.decode()

    def pop_to_mark(self) -> list[Any]:
        """Return everything above the last mark."""
        start = self.marks.pop()
        above = self.stack[start:]
        del self.stack[start:]
        return above

    def remember(self, index: int) -> None:
        """Keep the top of the stack in the memo, whose positions are given one after the other."""
        if index > len(self.memo):
            raise CheckpointError(f"its pickle's memo jumps from {len(self.memo):,} to {index:,}")
        self.memo[index : index + 1] = [self.stack[-1]]

    def set_items(self, keys_and_values: list[Any]) -> None:
        """Add items to the dictionary on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, dict):
            pairs = zip(keys_and_values[::2], keys_and_values[1::2], strict=True)
            target.update((key, value) for key, value in pairs if type(key) in (str, int))

    def append(self, items: list[Any]) -> None:
        """Add the texts among items to the list on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(item for item in items if isinstance(item, str))

    def call(self, function: Any, arguments: Any) -> None:
        """Push the result of a call, as far as it is known; no function of the file is called."""
        if function is Known.FOREIGN or isinstance(function, Inert):
            return self.stack.append(Inert())
        match function, arguments:
            case Known.TENSOR, (Tensor() as storage, int(offset), tuple(size), tuple(stride), *_):
                self._num_tensors += 1
                if self._num_tensors > MOST_TENSORS:
                    raise CheckpointError(f"it has more than the {MOST_TENSORS:,} tensors that it may have")
                self.stack.append(_tensor(storage, offset, size, stride))
            case Known.PARAMETER, (Tensor() as tensor, *_):
                self.stack.append(tensor)
            case Known.DICTIONARY, ():
                self.stack.append({})
            case _:
                raise CheckpointError("a tensor, a parameter or a dictionary is described wrongly")

    def build(self, state: Any) -> None:
        """Give the object on top of the stack its state; attributes of dictionaries (their metadata) are dropped."""
        target = self.stack[-1]
        state = state[0] if isinstance(state, tuple) and state else state
        if isinstance(target, Inert) and isinstance(state, dict):
            target.state = state

    def load_storage(self, identity: Any) -> None:
        """Push a storage; nothing else is outside the pickle."""
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(num_elements)):
                self.stack.append(self._read_storage(dtype, key, num_elements))
            case _:
                raise CheckpointError("it refers to something outside the file that is not a tensor storage")


def _tensor(storage: Tensor, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> Tensor:
    numbers = (offset, *size[:MOST_DIMENSIONS], *stride[:MOST_DIMENSIONS])
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise CheckpointError(f"a tensor has {plural(len(size), 'size')} and {plural(len(stride), 'stride')}")
    if not all(isinstance(number, int) and 0 <= number < MOST_NUMBER for number in numbers):
        raise CheckpointError("a tensor is described wrongly: sizes, strides and offset are whole numbers from 0 on")
    if prod(size) > storage.numel():
        raise CheckpointError(f"a tensor of {plural(prod(size), 'element')} lies in a storage of {storage.numel()}")
    return storage.as_strided(size, stride, offset)


Handler = Callable[[_Reader], Any]


def _number(form: str) -> Callable[[_Reader], Any]:
    layout = struct.Struct(form)
    return lambda reader: layout.unpack(reader.take(layout.size))[0]


def _push(value: Callable[[_Reader], Any]) -> Handler:
    return lambda reader: reader.stack.append(value(reader))


def _constant(value: Any) -> Handler:
    return lambda reader: reader.stack.append(value)


def _text(length: Callable[[_Reader], int]) -> Handler:
    def push(reader: _Reader) -> None:
        data = reader.take(length(reader))
        reader.stack.append(data.decode() if len(data) <= MOST_CHARACTERS else DROPPED)

    return push


def _dropped(length: Callable[[_Reader], int]) -> Handler:
    def push(reader: _Reader) -> None:
        reader.take(length(reader))
        reader.stack.append(DROPPED)

    return push


def _long(reader: _Reader) -> Any:
    data = reader.take(_BYTE(reader))
    return int.from_bytes(data, "little", signed=True) if len(data) <= 8 else DROPPED


def _tuple_of(count: int) -> Handler:
    def push(reader: _Reader) -> None:
        reader.stack[-count:] = [tuple(reader.stack[-count:])]

    return push


def _set_item(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items([key, value])


def _frozen_set(reader: _Reader) -> None:
    reader.pop_to_mark()
    reader.stack.append(DROPPED)


def _call(reader: _Reader) -> None:
    arguments, function = reader.stack.pop(), reader.stack.pop()
    reader.call(function, arguments)


def _stack_global(reader: _Reader) -> Any:
    name, module = reader.stack.pop(), reader.stack.pop()
    return resolve(module, name) if isinstance(module, str) and isinstance(name, str) else Known.FOREIGN


_BYTE, _SHORT, _WORD, _LONG_WORD = _number("<B"), _number("<H"), _number("<I"), _number("<Q")
STOP = ord(".")
HANDLERS: dict[int, Handler] = {
    ord(opcode): handler
    for opcode, handler in {
        "\x80": lambda reader: reader.take(1),  # protocol
        "\x95": lambda reader: reader.take(8),  # frame
        "(": lambda reader: reader.marks.append(len(reader.stack)),
        "0": lambda reader: reader.stack.pop(),
        "1": lambda reader: reader.pop_to_mark(),
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "J": _push(_number("<i")),
        "K": _push(_BYTE),
        "M": _push(_SHORT),
        "G": _push(_number(">d")),
        "\x8a": _push(_long),
        "\x8b": _dropped(_WORD),  # a number of more than 255 bytes
        "X": _text(_WORD),
        "\x8c": _text(_BYTE),
        "\x8d": _text(_LONG_WORD),
        "T": _text(_WORD),
        "U": _text(_BYTE),
        "B": _dropped(_WORD),
        "C": _dropped(_BYTE),
        "\x8e": _dropped(_LONG_WORD),
        "\x96": _dropped(_LONG_WORD),
        ")": _constant(()),
        "\x85": _tuple_of(1),
        "\x86": _tuple_of(2),
        "\x87": _tuple_of(3),
        "t": _push(lambda reader: tuple(reader.pop_to_mark())),
        "]": _push(lambda reader: []),
        "a": lambda reader: reader.append([reader.stack.pop()]),
        "e": lambda reader: reader.append(reader.pop_to_mark()),
        "\x8f": _constant(DROPPED),  # a set, and its items
        "\x90": lambda reader: reader.pop_to_mark(),
        "\x91": _frozen_set,
        "}": _push(lambda reader: {}),
        "s": _set_item,
        "u": lambda reader: reader.set_items(reader.pop_to_mark()),
        "q": lambda reader: reader.remember(_BYTE(reader)),
        "r": lambda reader: reader.remember(_WORD(reader)),
        "\x94": lambda reader: reader.remember(len(reader.memo)),
        "h": _push(lambda reader: reader.memo[_BYTE(reader)]),
        "j": _push(lambda reader: reader.memo[_WORD(reader)]),
        "c": _push(lambda reader: resolve(reader.take_line(), reader.take_line())),
        "\x93": _push(_stack_global),
        "R": _call,
        "\x81": _call,
        "b": lambda reader: reader.build(reader.stack.pop()),
        "Q": lambda reader: reader.load_storage(reader.stack.pop()),
    }.items()
}
"""The opcodes of ``torch.save``, in the pickle protocols 2 to 5."""
