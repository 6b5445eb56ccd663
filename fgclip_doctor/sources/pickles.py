"""Pickles read as data: an interpreter of the opcodes (protocols 0 to 5) that imports nothing and calls nothing.

What a pickle would import or call becomes a `Stub` that says so. Only constructors of plain data (an ordered
dictionary, a set, bytes) are carried out, by the few lines of `PLAIN` here. Opcodes, containers, memo entries and
nested marks are bounded, so a small file can't ask for much; what comes out may still be deep, cyclic, or a small graph
that is an enormous tree, so walk it with `plain`.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import NoneType
from typing import Any

from fgclip_doctor.sources.files import Unreadable

MAX_OPCODES = 4_000_000  # the optimizer state of ten thousand parameters is about a million
MAX_CONTAINERS = 1_000_000
MAX_MEMO = 2_000_000
MAX_MARKS = 10_000
MAX_INTEGER = 127  # bytes: what a float can hold, so that every number can be computed with
MAX_SHOWN = 1000  # characters of a text
MAX_ODD_KEYS = 10_000  # keys whose hashes a file can make collide: tuples and long integers


@dataclass(eq=False, slots=True)
class Stub:
    """Stands for a class, a function, or what a call of one would have made. Compared and hashed by identity.

    `called` says whether it stands for the result of a call. `state` is what would have been set on it, `items` what
    would have been appended to it, or put into it as pairs.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] | None = None
    state: Any = None
    items: list[Any] = field(default_factory=list)
    called: bool = False

    def __repr__(self) -> str:
        return f"<{self.path}{'(...)' if self.called else ''}>"

    @property
    def path(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"


Finish = Callable[[Stub], Any]
Persistent = Callable[[Any], Any]


class Malformed(Exception):  # noqa: N818 - never leaves the readers of pickles: they turn it into `Unreadable`
    """What is wrong with a pickle."""


def load(
    data: bytes, path: str, *, start: int = 0, finish: Finish | None = None, persistent: Persistent | None = None
) -> tuple[Any, int]:
    """The value of the pickle that begins at `start`, and where it ends.

    `finish` gets each stub when it was called or its state was set, and returns what stands for it from then on: the
    stub itself, or a value. `persistent` does the same for persistent ids. Either may raise `Malformed`.
    """
    reader = _Reader(
        data, start, finish or (lambda stub: stub), persistent or (lambda key: Stub("", "persistent", (key,)))
    )
    try:
        return reader.run(), reader.at
    except Malformed as error:
        why = str(error)
    except (IndexError, struct.error):
        why = "it ends early, or takes more from its stack than there is"
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
    raise Unreadable(path, f"is not a sound pickle: byte {reader.at:,}: {why}")


def plain(value: Any, budget: int = 10_000, depth: int = 32) -> Any:
    """`value` as a tree of at most `budget` plain values, to be shown; what is beyond that or `depth` is "..."."""
    left = budget

    def convert(one: Any, level: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or level > depth:
            return "..."
        if isinstance(one, dict):
            return {str(convert(key, level + 1)): convert(item, level + 1) for key, item in _first(one.items(), left)}
        if isinstance(one, (list, tuple, set, frozenset)):
            return [convert(item, level + 1) for item in _first(one, left)]
        if isinstance(one, Stub):
            parts = {"args": one.args, "kwargs": one.kwargs, "state": one.state, "items": one.items}
            return {"stub": one.path} | {name: convert(part, level + 1) for name, part in parts.items() if part}
        return one if one is None or isinstance(one, (bool, int, float)) else str(one)[:MAX_SHOWN]

    return convert(value, 0)


def _first(items: Iterable[Any], count: int) -> Iterator[Any]:
    return islice(iter(items), max(count, 0))


# The interpreter ------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, data: bytes, start: int, finish: Finish, persistent: Persistent) -> None:
        self.data = data
        self.at = start
        self.finish = finish
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, Any] = {}
        self.unfinished: dict[int, int] = {}  # id of a stub without state -> its memo index
        self.spent = 0
        self.odd_keys = 0

    def run(self) -> Any:
        data, operations = self.data, _OPERATIONS
        for _ in range(MAX_OPCODES):
            code = data[self.at]
            self.at += 1
            if code == STOP:
                return self.stack.pop()
            operation = operations[code]
            if operation is None:
                raise Malformed(f"0x{code:02x} is no opcode")
            operation(self)
        raise Malformed(f"it has more than {MAX_OPCODES:,} opcodes")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Malformed("it ends early")
        part = self.data[self.at : end]
        self.at = end
        return part

    def sized(self, width: int) -> bytes:
        """Bytes after their own length, which takes `width` bytes."""
        return self.take(int.from_bytes(self.take(width), "little"))

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise Malformed("it ends early")
        part = self.data[self.at : end]
        self.at = end + 1
        return part

    def word(self) -> str:
        return self.line().decode("utf-8", "replace")

    def number(self) -> int:
        digits = self.line()
        if len(digits) > 2 * MAX_INTEGER:
            raise Malformed("an integer is too long")
        return int(digits.removesuffix(b"L"))

    def spend(self, count: int) -> None:
        """Account for `count` new containers, or for copying as many items or a hundred times as many bytes."""
        self.spent += count
        if self.spent > MAX_CONTAINERS:
            raise Malformed(f"it makes more than {MAX_CONTAINERS:,} containers")

    def push(self, container: Any) -> None:
        self.spend(1)
        self.stack.append(container)

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def remember(self, index: int) -> None:
        if index < 0 or len(self.memo) >= MAX_MEMO:
            raise Malformed(f"its memo has more than {MAX_MEMO:,} entries")
        value = self.stack[-1]
        self.memo[index] = value
        if isinstance(value, Stub):
            self.unfinished[id(value)] = index

    def key(self, key: Any) -> Any:
        """`key`, if its hash is cheap and can't be made to collide with thousands of others."""
        kind = type(key)
        if kind is str or kind is bytes or kind is bool or key is None:
            return key
        if kind is int and -MAX_HASHED < key < MAX_HASHED:
            return key
        self.odd_keys += 1
        if self.odd_keys > MAX_ODD_KEYS:
            raise Malformed(f"it has more than {MAX_ODD_KEYS:,} keys that are neither text nor short integers")
        self.check_hashable(key, 4)
        return key

    def check_hashable(self, key: Any, depth: int) -> None:
        if isinstance(key, tuple):
            if not depth or len(key) > 64:
                raise Malformed("a tuple used as a key is too large")
            for part in key:
                self.check_hashable(part, depth - 1)
        elif not isinstance(key, SCALARS) and getattr(type(key), "__hash__", None) is not BY_IDENTITY:
            raise Malformed(f"a {type(key).__name__} can't be a key")

    def put(self, target: Any, items: list[Any]) -> None:
        """Set items: key, value, key, value."""
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Stub):
            self.spend(len(pairs))
            target.items.extend(pairs)
        elif isinstance(target, dict):
            for key, value in pairs:
                target[self.key(key)] = value
        else:
            raise Malformed(f"it sets items of a {type(target).__name__}")

    def extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, set):
            target.update(self.key(item) for item in items)
        elif isinstance(target, (list, Stub)):
            (target.items if isinstance(target, Stub) else target).extend(items)
        else:
            raise Malformed(f"it appends to a {type(target).__name__}")

    def call(self, callee: Any, args: Any, kwargs: Any = None) -> None:
        """Put what stands for the result of a call onto the stack."""
        if not isinstance(args, tuple) or not isinstance(kwargs, (dict, NoneType)):
            raise Malformed("it calls with arguments that are not a tuple")
        self.spend(1)
        if not isinstance(callee, Stub):
            stub = Stub("", type(callee).__name__, args, kwargs, called=True)
        elif not callee.called:
            construct = PLAIN.get(callee.path)
            value = construct(self, args) if construct and not kwargs else NOT_PLAIN
            if value is not NOT_PLAIN:
                self.stack.append(value)
                return
            stub = Stub(callee.module, callee.name, args, kwargs, called=True)
        else:
            stub = Stub(callee.module, f"{callee.name}()", args, kwargs, called=True)
        self.stack.append(self.finish(stub))

    def build(self, state: Any) -> None:
        """Set the state of the stub on the stack. That of plain data (a state dict's metadata) is left out."""
        stub = self.stack[-1]
        if not isinstance(stub, Stub):
            return
        stub.state = state
        value = self.stack[-1] = self.finish(stub)
        if value is not stub and id(stub) in self.unfinished:
            self.memo[self.unfinished[id(stub)]] = value


# Constructors of plain data -------------------------------------------------------------------------------------------

NOT_PLAIN = object()
BY_IDENTITY: Any = object.__hash__
SCALARS = (str, bytes, bool, int, float, complex, NoneType)
MAX_HASHED = (1 << 61) - 1  # integers below hash to themselves: those of one dictionary can't all collide


def _dictionary(reader: _Reader, args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return {}
        case (list(pairs),) if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            reader.spend(len(pairs))
            return {reader.key(key): value for key, value in pairs}
    return NOT_PLAIN


def _default_dictionary(reader: _Reader, args: tuple[Any, ...]) -> Any:
    return {} if len(args) <= 1 else NOT_PLAIN


def _set(reader: _Reader, args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return set()
        case (list(items),) | (tuple(items),):
            reader.spend(len(items))
            return {reader.key(item) for item in items}
    return NOT_PLAIN


def _frozen_set(reader: _Reader, args: tuple[Any, ...]) -> Any:
    items = _set(reader, args)
    return items if items is NOT_PLAIN else frozenset(items)


def _bytes(reader: _Reader, args: tuple[Any, ...]) -> Any:
    match args:
        case ():
            return b""
        case (bytes(content),):
            return content
        case (str(text), str(encoding)) if encoding.replace("-", "") == "latin1":
            reader.spend(len(text) // 100)
            return text.encode("latin-1")
    return NOT_PLAIN


def _byte_array(reader: _Reader, args: tuple[Any, ...]) -> Any:
    content = _bytes(reader, args)
    if content is NOT_PLAIN:
        return content
    reader.spend(len(content) // 100)
    return bytearray(content)


def _size(reader: _Reader, args: tuple[Any, ...]) -> Any:
    match args:
        case (list(lengths),) | (tuple(lengths),):
            reader.spend(len(lengths))
            return tuple(lengths)
    return NOT_PLAIN


def _complex(reader: _Reader, args: tuple[Any, ...]) -> Any:
    match args:
        case (float(real), float(imaginary)):
            return complex(real, imaginary)
    return NOT_PLAIN


def _instance(reader: _Reader, args: tuple[Any, ...]) -> Any:
    """`copyreg._reconstructor(class, base, content)`: how protocols 0 and 1 make an object before its state is set."""
    match args:
        case (Stub(called=False) as made, Stub(), content):
            return Stub(made.module, made.name, () if content is None else (content,), called=True)
    return NOT_PLAIN


PLAIN: dict[str, Callable[[_Reader, tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    **{
        f"{module}.{name}": construct
        for module in ("builtins", "__builtin__")  # protocols 0 to 2 keep Python 2's name
        for name, construct in {
            "set": _set,
            "frozenset": _frozen_set,
            "bytes": _bytes,
            "bytearray": _byte_array,
            "complex": _complex,
        }.items()
    },
    "copyreg._reconstructor": _instance,
    "copy_reg._reconstructor": _instance,
}

# Opcodes, by the names that pickletools gives them --------------------------------------------------------------------

Operation = Callable[[_Reader], None]
STOP = ord(".")
_OPERATIONS: list[Operation | None] = [None] * 256


def _opcode(code: bytes) -> Callable[[Operation], Operation]:
    def register(operation: Operation) -> Operation:
        _OPERATIONS[code[0]] = operation
        return operation

    return register


def _pushes(code: bytes, value: Callable[[_Reader], Any]) -> None:
    """An opcode that pushes a scalar."""
    _OPERATIONS[code[0]] = lambda reader: reader.stack.append(value(reader))


def _makes(code: bytes, container: Callable[[_Reader], Any]) -> None:
    """An opcode that pushes a container, which counts."""
    _OPERATIONS[code[0]] = lambda reader: reader.push(container(reader))


def _int(reader: _Reader) -> int | bool:
    if reader.data[reader.at : reader.at + 3] in (b"00\n", b"01\n"):
        return reader.line() == b"01"
    return reader.number()


def _long(reader: _Reader, width: int) -> int:
    size = int.from_bytes(reader.take(width), "little", signed=width == 4)
    if not 0 <= size <= MAX_INTEGER:
        raise Malformed(f"an integer of {size:,} bytes")
    return int.from_bytes(reader.take(size), "little", signed=True)


def _quoted(reader: _Reader) -> str:
    text = reader.line().strip()
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise Malformed("a string without its quotes")
    return codecs.escape_decode(text[1:-1])[0].decode("latin-1")


def _signed(reader: _Reader) -> int:
    return int.from_bytes(reader.take(4), "little", signed=True)


_pushes(b"N", lambda reader: None)  # NONE
_pushes(b"\x88", lambda reader: True)  # NEWTRUE
_pushes(b"\x89", lambda reader: False)  # NEWFALSE
_pushes(b"I", _int)  # INT
_pushes(b"J", _signed)  # BININT
_pushes(b"K", lambda reader: reader.take(1)[0])  # BININT1
_pushes(b"M", lambda reader: int.from_bytes(reader.take(2), "little"))  # BININT2
_pushes(b"L", _Reader.number)  # LONG
_pushes(b"\x8a", lambda reader: _long(reader, 1))  # LONG1
_pushes(b"\x8b", lambda reader: _long(reader, 4))  # LONG4
_pushes(b"F", lambda reader: float(reader.line()))  # FLOAT
_pushes(b"G", lambda reader: struct.unpack(">d", reader.take(8))[0])  # BINFLOAT
_pushes(b"S", _quoted)  # STRING
_pushes(b"T", lambda reader: reader.sized(4).decode("latin-1"))  # BINSTRING
_pushes(b"U", lambda reader: reader.sized(1).decode("latin-1"))  # SHORT_BINSTRING
_pushes(b"B", lambda reader: reader.sized(4))  # BINBYTES
_pushes(b"C", lambda reader: reader.sized(1))  # SHORT_BINBYTES
_pushes(b"\x8e", lambda reader: reader.sized(8))  # BINBYTES8
_pushes(b"\x96", lambda reader: bytearray(reader.sized(8)))  # BYTEARRAY8
_pushes(b"V", lambda reader: reader.line().decode("raw-unicode-escape"))  # UNICODE
_pushes(b"\x8c", lambda reader: reader.sized(1).decode("utf-8", "replace"))  # SHORT_BINUNICODE
_pushes(b"X", lambda reader: reader.sized(4).decode("utf-8", "replace"))  # BINUNICODE
_pushes(b"\x8d", lambda reader: reader.sized(8).decode("utf-8", "replace"))  # BINUNICODE8
_pushes(b"2", lambda reader: reader.stack[-1])  # DUP
_pushes(b"g", lambda reader: reader.memo[reader.number()])  # GET
_pushes(b"h", lambda reader: reader.memo[reader.take(1)[0]])  # BINGET
_pushes(b"j", lambda reader: reader.memo[int.from_bytes(reader.take(4), "little")])  # LONG_BINGET

_makes(b"]", lambda reader: [])  # EMPTY_LIST
_makes(b"}", lambda reader: {})  # EMPTY_DICT
_makes(b"\x8f", lambda reader: set())  # EMPTY_SET
_makes(b")", lambda reader: ())  # EMPTY_TUPLE
_makes(b"l", _Reader.since_mark)  # LIST
_makes(b"t", lambda reader: tuple(reader.since_mark()))  # TUPLE
_makes(b"\x85", lambda reader: (reader.stack.pop(),))  # TUPLE1
_makes(b"\x86", lambda reader: (reader.stack.pop(), reader.stack.pop())[::-1])  # TUPLE2
_makes(b"\x87", lambda reader: (reader.stack.pop(), reader.stack.pop(), reader.stack.pop())[::-1])  # TUPLE3
_makes(b"\x91", lambda reader: frozenset(reader.key(item) for item in reader.since_mark()))  # FROZENSET
_makes(b"c", lambda reader: Stub(reader.word(), reader.word()))  # GLOBAL
_makes(b"P", lambda reader: reader.persistent(reader.word()))  # PERSID
_makes(b"Q", lambda reader: reader.persistent(reader.stack.pop()))  # BINPERSID
_makes(b"\x82", lambda reader: Stub("copyreg", f"extension {int.from_bytes(reader.take(1), 'little')}"))  # EXT1
_makes(b"\x83", lambda reader: Stub("copyreg", f"extension {int.from_bytes(reader.take(2), 'little')}"))  # EXT2
_makes(b"\x84", lambda reader: Stub("copyreg", f"extension {_signed(reader)}"))  # EXT4


@_opcode(b"\x80")
def _proto(reader: _Reader) -> None:
    if (version := reader.take(1)[0]) > 5:
        raise Malformed(f"protocol {version}")


@_opcode(b"\x95")
def _frame(reader: _Reader) -> None:
    reader.take(8)


@_opcode(b"\x98")
def _readonly_buffer(reader: _Reader) -> None:
    """Changes nothing here."""


@_opcode(b"(")
def _mark(reader: _Reader) -> None:
    if len(reader.marks) >= MAX_MARKS:
        raise Malformed(f"it nests more than {MAX_MARKS:,} marks")
    reader.marks.append(len(reader.stack))


@_opcode(b"0")
def _pop(reader: _Reader) -> None:
    if reader.marks and reader.marks[-1] == len(reader.stack):
        reader.marks.pop()
    else:
        reader.stack.pop()


@_opcode(b"1")
def _pop_mark(reader: _Reader) -> None:
    reader.since_mark()


@_opcode(b"p")
def _put(reader: _Reader) -> None:
    reader.remember(reader.number())


@_opcode(b"q")
def _binput(reader: _Reader) -> None:
    reader.remember(reader.take(1)[0])


@_opcode(b"r")
def _long_binput(reader: _Reader) -> None:
    reader.remember(int.from_bytes(reader.take(4), "little"))


@_opcode(b"\x94")
def _memoize(reader: _Reader) -> None:
    reader.remember(len(reader.memo))


@_opcode(b"a")
def _append(reader: _Reader) -> None:
    item = reader.stack.pop()
    reader.extend(reader.stack[-1], [item])


@_opcode(b"e")
@_opcode(b"\x90")
def _appends_or_additems(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.extend(reader.stack[-1], items)


@_opcode(b"s")
def _setitem(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.put(reader.stack[-1], [key, value])


@_opcode(b"u")
def _setitems(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.put(reader.stack[-1], items)


@_opcode(b"d")
def _dict(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.push({})
    reader.put(reader.stack[-1], items)


@_opcode(b"\x93")
def _stack_global(reader: _Reader) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Malformed("the name of a global is not text")
    reader.push(Stub(module, name))


@_opcode(b"R")
@_opcode(b"\x81")
def _reduce_or_newobj(reader: _Reader) -> None:
    args, callee = reader.stack.pop(), reader.stack.pop()
    reader.call(callee, args)


@_opcode(b"\x92")
def _newobj_ex(reader: _Reader) -> None:
    kwargs, args, callee = reader.stack.pop(), reader.stack.pop(), reader.stack.pop()
    reader.call(callee, args, kwargs)


@_opcode(b"i")
def _inst(reader: _Reader) -> None:
    callee = Stub(reader.word(), reader.word())
    reader.call(callee, tuple(reader.since_mark()))


@_opcode(b"o")
def _obj(reader: _Reader) -> None:
    callee, *args = reader.since_mark() or [None]
    reader.call(callee, tuple(args))


@_opcode(b"b")
def _build(reader: _Reader) -> None:
    reader.build(reader.stack.pop())


@_opcode(b"\x97")
def _next_buffer(reader: _Reader) -> None:
    raise Malformed("its buffers are kept outside of it")
