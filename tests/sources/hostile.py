"""Pickles and archives that would do harm if anything ran them, and pickles that would exhaust a reader."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # torch/serialization.py


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
        "persistent id in text": b"(Pos\nPsystem\n\x93" + touch + b"\x85Rt.",
        "next buffer": b"\x80\x05" + system + b"\x97\x85R.",
        "read-only buffer": b"\x80\x05" + system + touch + b"\x98\x85R.",
        "rebuild by another function": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN("
        + touch
        + b"tNtR.",
        "load from bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n(" + text(shell) + b"tR.",
        "runpy": b"crunpy\nrun_path\n(" + text(str(mark)) + b"tR.",
        "codecs with another codec": b"c_codecs\nencode\n(" + text(shell) + text("rot13") + b"tR.",
        "stopped early, as scanners stop": b"cos\nsystem\n(" + touch + b"tR\xff.",
    }


def _named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def bypasses(mark: Path) -> dict[str, bytes]:
    """Published ways round scanners of pickles, each of which creates `mark` under Python's own unpickler."""
    shell = f"touch {mark}"
    touch = text(shell) + b"\x85R."
    code = text(f"open({str(mark)!r}, 'w').close()")
    system = _named("os", "system")
    join = _named("builtins", "str.join") + text("") + b"](" + text("o") + text("s") + b"e\x86R"
    in_class = b"\x80\x04" + _named("collections", "Counter") + b"q\x00N}"
    return {
        # picklescan#14, modelscan#54: PUT and MEMOIZE mixed, so that a count of the memo is wrong
        "memo index beside a count": b"\x80\x04"
        + (text("os") + b"q\x00" + text("system") + b"q\x01" + text("torch._utils") + b"\x94" + text("x") + b"\x94")
        + (b"0000h\x00h\x01\x93" + touch),
        # picklescan CVE-2025-71325: an argument at the first opcode
        "STACK_GLOBAL of the first opcode": system + touch,
        # modelscan#85: names that are put into a class by BUILD, and read from there
        "names kept in a class": in_class
        + (text("a") + text("os") + b"s\x86b" + b"N}" + text("b") + text("system") + b"s\x86b0")
        + (b"ccollections\nCounter.a\nccollections\nCounter.b\n\x93" + touch),
        # modelscan#331: a name that only a call makes
        "a name joined from letters": b"\x80\x04" + join + text("system") + b"\x93" + touch,
        # the memo of what BINGET gives, which is not what stands before it in the file
        "memo of a memo": b"\x80\x04"
        + (text("os") + b"q\x07" + text("x") + b"0h\x07\x94" + text("system") + b"q\x08" + text("y") + b"00")
        + (b"0h\x07h\x08\x93" + touch),
        # a PUT after a POP, which memoises what lies under it
        "memo after a pop": b"\x80\x04" + text("os") + b"N0q\x00" + text("system") + b"N0q\x01\x93" + touch,
        "memo index that is written twice": b"\x80\x04"
        + (text("json") + b"q\x00" + text("os") + b"q\x00" + text("system") + b"q\x0100" + b"h\x00h\x01\x93")
        + touch,
        # fickling lost a call whose result is dropped at once
        "a result that is dropped": b"\x80\x04" + system + touch[:-1] + b"0}.",
        "a result that is dropped, by OBJ": b"\x80\x04(" + system + text(shell) + b"o0}.",
        "a result in a mark that is dropped": b"\x80\x04(" + system + touch[:-1] + b"1}.",
        # modelscan#267: a pickle in a pickle
        "pickle.loads": b"\x80\x04"
        + (_named("pickle", "loads") + b"B" + struct.pack("<I", len(system + touch)) + system + touch + b"\x85R."),
        # picklescan GHSA-vvpj-8cmc-gx39: one function that resolves any other
        "pkgutil.resolve_name": b"\x80\x04" + _named("pkgutil", "resolve_name") + text("os:system") + b"\x85R" + touch,
        "importlib and getattr": b"\x80\x04"
        + (_named("builtins", "getattr") + _named("importlib", "import_module") + text("os") + b"\x85R")
        + (text("system") + b"\x86R" + touch),
        # picklescan GHSA-84r2-jw7c-4r5q (CVE-2025-71320)
        "operator.methodcaller": b"\x80\x04"
        + (_named("operator", "methodcaller") + text("system") + text(shell) + b"\x86R")
        + (_named("pydoc", "locate") + text("os") + b"\x85R\x85R."),
        "attributes by a dotted name": b"\x80\x04" + _named("shutil", "os.system") + touch,
        # picklescan CVE-2025-71351, fickling CVE-2026-22607 and others of the same kind: what runs code from text
        "timeit.timeit": b"\x80\x04"
        + (_named("timeit", "timeit") + b"(" + code + text("pass") + _named("time", "time") + b"K\x01tR."),
        "cProfile.run": b"\x80\x04" + _named("cProfile", "run") + code + text("/dev/null") + b"\x86R.",
        "code.InteractiveInterpreter": b"\x80\x04"
        + (_named("builtins", "getattr") + _named("code", "InteractiveInterpreter") + b")R" + text("runsource"))
        + (b"\x86R" + code + b"\x85R."),
        "bdb.Bdb.run": b"\x80\x04" + _named("bdb", "Bdb.run") + _named("bdb", "Bdb") + b")R" + code + b"}\x87R.",
        "dunder of an instance": b"\x80\x04" + _named("builtins", "eval.__call__") + code + b"\x85R.",
        # the scanner gives up where the unpickler has long since run it: nullifAI
        "broken after the call": b"\x80\x04" + system + touch[:-1] + b"0\xff\xff",
        "cut after the call": b"\x80\x04" + system + touch[:-1],
        "data after STOP": b"\x80\x04" + system + touch + b"\xff" * 100,
        "frame of a wrong length": b"\x80\x04" + system + touch[:-1] + b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "protocol 0 behind its number": b"\x80\x05cposix\nsystem\n(V" + shell.encode() + b"\ntR.",
        "long text opcodes": b"(V\\u006fs\np0\n0Vsystem\np1\n0g0\ng1\n\x93V" + shell.encode() + b"\n\x85R.",
        "NEWOBJ_EX": b"\x80\x04" + _named("functools", "partial") + system + text(shell) + b"\x86}\x92)R.",
        "state of a class that has __setstate__": b"\x80\x04"
        + (_named("collections", "Counter") + b"q\x00N}" + text("__setstate__") + system + b"s\x86bh\x00)\x81")
        + (text(shell) + b"b."),
        "items of a class that has append": b"\x80\x04"
        + (_named("collections", "Counter") + b"q\x00N}" + text("append") + system + b"s\x86bh\x00)R")
        + (text(shell) + b"a."),
        "functools.partial": b"\x80\x04" + _named("functools", "partial") + system + text(shell) + b"\x86R)R.",
    }


GADGETS = (  # of other published bypasses: callables that a list of what is dangerous missed
    "_posixsubprocess.fork_exec",  # fickling CVE-2026-14534
    "asyncio.unix_events._UnixSubprocessTransport._start",  # picklescan CVE-2025-10157
    "atexit._run_exitfuncs",
    "codecs.open",
    "codeop.compile_command",
    "ctypes.CDLL",  # fickling CVE-2026-22608
    "ensurepip._run_pip",
    "http.client.HTTPSConnection",
    "idlelib.debugobj.ObjectTreeItem.SetText",  # picklescan CVE-2025-71354
    "inspect.getattr_static",
    "io.open",
    "lib2to3.pgen2.pgen.ParserGenerator.make_label",  # picklescan CVE-2025-71343
    "logging.config.fileConfig",
    "marshal.loads",  # fickling CVE-2025-67747
    "multiprocessing.util.spawnv_passfds",
    "numpy.f2py.crackfortran.getlincoef",
    "numpy.testing._private.utils.runstring",
    "pip.main",  # picklescan CVE-2025-1716
    "profile.run",  # picklescan CVE-2026-53873
    "pty.spawn",  # fickling CVE-2025-67748
    "runpy.run_module",  # fickling CVE-2026-22606
    "site.execsitecustomize",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",  # picklescan CVE-2025-71356
    "torch.hub.load",
    "torch.jit.unsupported_tensor_ops.execWrapper",
    "torch.load",
    "torch.utils.cpp_extension.load_inline",
    "trace.Trace.runctx",  # picklescan CVE-2025-71352
    "types.FunctionType",
    "uuid._get_command_stdout",
    "webbrowser.open",
)


def gadgets(mark: Path) -> dict[str, bytes]:
    """A call of each of `GADGETS` with text, by GLOBAL and by STACK_GLOBAL."""
    shell = text(f"touch {mark}")
    return {
        f"{path}, {how}": start + shell + b"\x85R."
        for path in GADGETS
        for module, _, name in [path.rpartition(".")]
        for how, start in (("GLOBAL", f"c{module}\n{name}\n".encode()), ("STACK_GLOBAL", _named(module, name)))
    }


def rebuilding(mark: Path) -> dict[str, bytes]:
    """The functions that tensors are rebuilt with, given what is no tensor's: stubs, calls, negatives, text."""
    hostile = b"cposix\nsystem\n" + text(f"touch {mark}") + b"\x85R"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    oddities = {"a call": hostile, "text": text("x"), "minus one": b"J\xff\xff\xff\xff", "none": b"N", "a list": b"]"}
    functions = {
        "torch._utils": (
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_parameter",
            "_rebuild_qtensor",
            "_rebuild_sparse_tensor",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_meta_tensor_no_storage",
            "_rebuild_wrapper_subclass",
            "_rebuild_nested_tensor",
        ),
        "torch._tensor": ("_rebuild_from_type_v2",),
        "torch.storage": ("_load_from_bytes",),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.numeric": ("_frombuffer",),
        "numpy": ("dtype", "ndarray"),
        "copyreg": ("_reconstructor", "__newobj__", "__newobj_ex__"),
        "collections": ("OrderedDict", "defaultdict", "deque"),
        "_codecs": ("encode",),
    }
    return {
        f"{module}.{name} of {how}, {first}": f"c{module}\n{name}\n(".encode() + start + odd * 3 + b"tR."
        for module, names in functions.items()
        for name in names
        for how, odd in oddities.items()
        for first, start in (("a storage first", storage), ("nothing first", b""))
    }


# Archives -------------------------------------------------------------------------------------------------------------


def zipped(pickled: bytes, name: str = "archive/data.pkl", **others: bytes) -> bytes:
    """An archive as torch writes it, with a storage of four float32."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, pickled)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(16))
        for other, data in others.items():
            archive.writestr(f"archive/{other}", data)
    return content.getvalue()


def archives(pickled: bytes) -> dict[str, bytes]:
    """What scanners of archives missed, around a hostile pickle that begins with protocol 4."""
    whole = zipped(pickled)
    local, central = whole.find(b"PK\x03\x04"), whole.find(b"PK\x01\x02")

    def changed(*places: tuple[int, int]) -> bytes:
        data = bytearray(whole)
        for place, flip in places:
            data[place] ^= flip
        return bytes(data)

    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            tar.addfile(entry, io.BytesIO(pickled))
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    version, nothing, keys = pickle.dumps(1001, 2), pickle.dumps({}, 2), pickle.dumps([], 2)
    array = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return {
        "as it is": whole,
        "CRC that does not fit": changed((local + 14, 0xFF), (central + 16, 0xFF)),  # picklescan CVE-2025-10156
        "CRC of the directory alone": changed((central + 16, 0xFF)),
        **{  # picklescan CVE-2025-1945
            f"flag {bit} of {where}": changed((place + bit // 8, 1 << bit % 8))
            for bit in (0, 1, 3, 5, 6, 11, 13)
            for where, place in (("the entry", local + 6), ("the directory", central + 8))
        },
        "another name in the entry": changed((local + 30, 0x01)),  # picklescan CVE-2025-1944
        "another name in the directory": changed((central + 46, 0x01)),
        "another version to extract": changed((local + 4, 0xFF), (central + 6, 0xFF)),
        "compressed": compressed.getvalue(),
        "behind other bytes": b"\x7fELF" + bytes(60) + whole,
        "before other bytes": whole + pickled,
        "twice": whole + zipped(pickle.dumps({})),
        "behind a sound one": zipped(pickle.dumps({})) + whole,
        "under another name": zipped(pickled, "archive/config.p"),  # picklescan CVE-2025-1889
        "under another name beside a sound one": zipped(pickle.dumps({}, 2), **{"extra/data.bin": pickled}),
        "two pickles": zipped(pickle.dumps({}, 2), **{"second/data.pkl": pickled}),
        "as its byte order": zipped(pickle.dumps({}, 2), **{"version": pickled, "../byteorder": pickled}),
        "as TorchScript": zipped(pickled, **{"constants.pkl": pickled, "code/x.py": b"import os\nos.abort()\n"}),
        "names that lead out": zipped(pickled, **{"../../../../tmp/owned": pickled, "data/../../x": pickled}),
        "7z, as nullifAI": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24) + pickled,
        "gzip": b"\x1f\x8b\x08\x00" + bytes(6) + pickled,
        "tar, as torch before 0.1.10": tarred.getvalue(),
        "older stream": LEGACY_MAGIC + version + system + pickled + keys,
        "older stream, as its magic": pickled + version + system + nothing + keys,
        "older stream, as its version": LEGACY_MAGIC + pickled + system + nothing + keys,
        "older stream, as its system": LEGACY_MAGIC + version + pickled + nothing + keys,
        "older stream, as its keys": LEGACY_MAGIC + version + system + nothing + pickled,
        "older stream, after its end": LEGACY_MAGIC + version + system + nothing + keys + pickled,
        "array of objects": array + pickled,
        "archive of arrays": zipped(array + pickled, "data.npy"),
        "text before it": b"# a log\n" + pickled,
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
