"""Pickles that would do harm if anything ran them, and pickles that would exhaust a reader."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def touching(mark: Path) -> dict[str, bytes]:
    """Pickles that would create `mark` if any opcode of them were carried out, by what they abuse."""
    shell = f"touch {mark}"
    write = f"open({str(mark)!r}, 'w')"
    calls = {
        "os.system": _Call(os.system, shell),
        "eval": _Call(eval, write),
        "exec": _Call(exec, write),
        "import": _Call(__import__, "antigravity"),
        "getattr": _Call(getattr, _Call(__import__, "os"), "system"),
        "open": _Call(open, str(mark), "w"),
        "map": _Call(list, _Call(map, os.system, [shell])),
        "nested in data": {"state": [{"exp_avg": _Call(os.system, shell)}]},
        "as a key": {_Call(os.system, shell): 1},
    }
    found = {
        f"{name}, protocol {protocol}": pickle.dumps(call, protocol)
        for name, call in calls.items()
        for protocol in range(6)
    }
    system, touch = text("os") + text("system") + b"\x93", text(shell)
    return found | {
        "GLOBAL": b"cos\nsystem\n(" + touch + b"tR.",
        "GLOBAL after proto 4 with attributes": b"\x80\x04"
        + text("os")
        + text("path.os.system")
        + b"\x93"
        + touch
        + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + system + touch + b"\x85R.",
        "STACK_GLOBAL from the memo": b"\x80\x04"
        + text("os")
        + b"q\x05"
        + text("system")
        + b"q\x06h\x05h\x06\x93"
        + touch
        + b"\x85R.",
        "INST": b"(" + touch + b"ios\nsystem\n.",
        "OBJ": b"(" + b"cos\nsystem\n" + touch + b"o.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n" + touch + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + system + touch + b"\x85}\x92.",
        "NEWOBJ of subprocess.Popen": b"\x80\x02csubprocess\nPopen\n" + text(shell) + b"\x85\x81.",
        "BUILD with __setstate__": b"\x80\x02c__main__\nX\n)\x81}"
        + text("__setstate__")
        + b"cos\nsystem\ns"
        + b"b"
        + touch
        + b"b.",
        "BUILD of a class's attributes": b"\x80\x02cos\npath\nN}" + text("join") + b"cos\nsystem\ns\x86b.",
        "copyreg reconstructor": b"ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\n" + touch + b"tR.",
        "copyreg newobj": b"ccopyreg\n__newobj__\n(cos\nsystem\n" + touch + b"tR.",
        "copyreg add_extension": b"ccopyreg\nadd_extension\n("
        + text("os")
        + text("system")
        + b"K\x01tR0\x82\x01"
        + touch
        + b"\x85R.",
        "EXT1": b"\x80\x02\x82\x01" + touch + b"\x85R.",
        "EXT2": b"\x80\x02\x83\x01\x00" + touch + b"\x85R.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00" + touch + b"\x85R.",
        "default factory": b"ccollections\ndefaultdict\n(cos\nsystem\ntR" + touch + b"Ns.",
        "persistent id": b"\x80\x02(" + text("storage") + system + touch + text("cpu") + b"K\x01tQ.",
        "rebuild by another function": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN("
        + touch
        + b"tNtR.",
        "load from bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n(" + text(shell) + b"tR.",
        "runpy": b"crunpy\nrun_path\n(" + text(str(mark)) + b"tR.",
        "codecs with another codec": b"c_codecs\nencode\n(" + text(shell) + text("rot13") + b"tR.",
        "stopped early, as scanners stop": b"cos\nsystem\n(" + touch + b"tR\xff.",
    }


def exhausting() -> dict[str, bytes]:
    """Small pickles that ask for much."""
    get = [b"h" + bytes([index]) for index in range(61)]
    layers = b"".join(b"(" + get[level] * 10 + b"lq" + bytes([level + 1]) for level in range(60))
    pairs = b"".join(b"I" + str(number * ((1 << 61) - 1)).encode() + b"\nN" for number in range(20_000))
    megabyte = text("x" * 1_000_000)
    return {
        "memo index of 4 billion": b"Nr\xff\xff\xff\xff.",
        "memo index of text": b"Np99999999999999999999\n.",
        "negative memo index": b"Np-1\n.",
        "nested lists": b"]" * 200_000 + b"a" * 199_999 + b".",
        "nested tuples": b")" + b"\x85" * 500_000 + b".",
        "nested tuples as a key": b"}" + b")" + b"\x85" * 500_000 + b"Ns.",
        "nested frozen sets": b"(" * 200 + b"\x91" * 200 + b".",
        "nested marks": b"(" * 1_000_000 + b"N.",
        "nested calls": b"cx\ny\n" + b"cx\ny\n" * 50_000 + b")R" + b"\x85R" * 50_000 + b".",
        "nested rebuilds": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00"
        + b"(h\x00N" * 9_000
        + b")"
        + b"Nt" * 9_000
        + b"R.",
        "ten to the sixty lists": b"]q\x00" + layers + b".",
        "integer of 2 GiB": b"\x8b\xff\xff\xff\x7f.",
        "integer of negative length": b"\x8b\xff\xff\xff\xff.",
        "integer of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "text of 2^63 bytes": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "bytes of 2^64 bytes": b"\x8e" + b"\xff" * 8 + b".",
        "colliding keys": b"(" + pairs + b"d.",
        "colliding keys in a set": b"\x8f(" + pairs.replace(b"N", b"") + b"\x90.",
        "a megabyte encoded a hundred thousand times": b"c_codecs\nencode\nq\x01("
        + megabyte
        + text("latin1")
        + b"tq\x020"
        + b"h\x01h\x02R" * 100_000
        + b".",
        "a long list copied again and again": b"cbuiltins\nset\nq\x01("
        + b"".join(b"M" + struct.pack("<H", i) for i in range(5_000))
        + b"l\x85q\x020"
        + b"h\x01h\x02R" * 10_000
        + b".",
        "duplicates": b"]" + b"2" * 3_000_000 + b".",
        "five million opcodes": b"N0" * 2_500_000 + b"N.",
        "a million sets": b"\x8f" * 1_500_000 + b".",
        "pops of nothing": b"0.",
        "cycle": b"]q\x00h\x00a.",
        "cycle through a tuple": b"]q\x00h\x00\x85a.",
    }
