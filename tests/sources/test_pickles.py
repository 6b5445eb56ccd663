"""The interpreter agrees with Python's own on data, and does nothing at all on everything else."""

from __future__ import annotations

import collections
import datetime
import json
import math
import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_doctor.sources import pickles
from fgclip_doctor.sources.files import Unreadable
from fgclip_doctor.sources.pickles import Malformed, Stub
from tests.sources.hostile import exhausting, touching


def load(data: bytes, **hooks: Any) -> Any:
    return pickles.load(data, "x.pkl", **hooks)[0]


protocols = st.integers(0, 5)
text = st.text(st.characters(exclude_categories=["Cs"]))
keys = st.one_of(text, st.integers(), st.booleans(), st.none(), st.binary(), st.floats(allow_nan=False))
scalars = keys | st.floats() | st.binary(min_size=250, max_size=300)
data = st.recursive(
    scalars | st.builds(complex, st.floats(), st.floats()),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(keys | st.tuples(keys, keys), inner)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(keys)
        | st.frozensets(keys)
        | st.dictionaries(text, inner).map(collections.OrderedDict)
        | st.binary().map(bytearray)
    ),
    max_leaves=30,
)


@given(data, protocols)
def test_data_is_read_as_python_reads_it(value: Any, protocol: int) -> None:
    pickled = pickle.dumps(value, protocol)
    assert ordered(load(pickled)) == ordered(pickle.loads(pickled))


def ordered(value: Any) -> str:
    """Text that is equal for equal values of the same types: NaN like NaN, sets in order, dictionaries as such."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{ordered(key)}: {ordered(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(ordered, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({', '.join(sorted(map(ordered, value)))})"
    return repr(value)


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_cyclic_values_stay_so(protocol: int) -> None:
    shared = ["a"]
    value: dict[str, Any] = {"one": shared, "two": shared}
    value["self"] = value
    found = load(pickle.dumps(value, protocol))
    assert found["one"] is found["two"]
    assert found["self"] is found


@pytest.mark.parametrize("protocol", range(6))
def test_long_containers(protocol: int) -> None:
    value = {index: (str(index), list(range(index % 7))) for index in range(5_000)}
    assert load(pickle.dumps(value, protocol)) == value


class Mode(Enum):
    STEPS = "steps"


@dataclass
class Arguments:
    lr: float
    mode: Mode


class Slotted:
    __slots__ = ("a",)


class Ledger(dict[str, int]):
    pass


class Queue(list[int]):
    pass


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_stubs_with_their_state(protocol: int) -> None:
    stub = load(pickle.dumps(Arguments(1e-4, Mode.STEPS), protocol))
    assert (stub.module, stub.name, stub.called) == (__name__, "Arguments", True)
    assert stub.state["lr"] == 1e-4
    assert stub.state["mode"].name == "Mode"
    assert stub.state["mode"].args == ("steps",)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_items_of_unknown_containers_are_kept(protocol: int) -> None:
    ledger = Ledger(a=1)
    ledger.owner = "me"  # type: ignore[attr-defined]
    found = load(pickle.dumps([ledger, Queue([1, 2])], protocol))
    assert found[0].items == [("a", 1)]
    assert found[0].state == {"owner": "me"}
    assert found[1].items == [1, 2]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [datetime.timedelta(3), PurePosixPath("/a"), len, int, collections.deque([1])])
def test_other_values_are_described(value: object, protocol: int) -> None:
    assert isinstance(load(pickle.dumps(value, protocol)), Stub)


@pytest.mark.parametrize("protocol", range(6))
def test_state_of_an_ordered_dictionary_is_left_out(protocol: int) -> None:
    weights = collections.OrderedDict(weight=1)
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    found = load(pickle.dumps(weights, protocol))
    assert found == {"weight": 1}
    assert type(found) is dict


def test_python_2_text_and_integers() -> None:
    assert load(b"(S'it\\'s \\xe9'\nI01\nI00\nI7\nL12L\nV\\u00e9\nU\x02\xe9aT\x01\x00\x00\x00bt.") == (
        "it's é",
        True,
        False,
        7,
        12,
        "é",
        "éa",
        "b",
    )


def test_stubs_are_keys_by_identity() -> None:
    found = load(pickle.dumps({Mode: 1, Arguments: 2, (Mode, 3): 3}))
    assert sorted(found.values()) == [1, 2, 3]


def test_persistent_ids_and_finished_stubs_are_the_callers() -> None:
    def finish(stub: Stub) -> Any:
        return f"made {stub.name}" if stub.state else stub

    found = load(
        b"(" + b"cm\nC\n)\x81q\x01}" + b"X\x01\x00\x00\x00aNsb" + b"h\x01K\x07QPname\nt.",
        finish=finish,
        persistent=repr,
    )
    assert found == ("made C", "made C", "7", "'name'")


def test_errors_of_the_callers_are_told_with_their_place() -> None:
    def refuse(key: Any) -> Any:
        raise Malformed(f"no storage {key}")

    with pytest.raises(Unreadable, match=r"^x\.pkl: is not a sound pickle: byte 3: no storage 7$"):
        load(b"K\x07Q.", persistent=refuse)


def test_several_pickles_follow_each_other() -> None:
    both = pickle.dumps("one") + pickle.dumps("two")
    first, end = pickles.load(both, "x")
    assert (first, *pickles.load(both, "x", start=end)) == ("one", "two", len(both))


# Sound or not, it ends in a value or in one line ----------------------------------------------------------------------


def attempt(content: bytes) -> Any:
    try:
        value = load(content)
    except Unreadable:
        return None
    return json.dumps(pickles.plain(value))


EVERYTHING = [
    {"a": [1, 2.5, "x", b"y", (1, 2, 3, 4), {1}, frozenset([3]), 10**30, None, True, 1j, bytearray(b"abc")]},
    [Arguments(1.0, Mode.STEPS), collections.OrderedDict(a=1), Ledger(a=2), Queue([3]), len, datetime.timedelta(2)],
]


@pytest.mark.parametrize("protocol", range(6))
def test_cut_anywhere(protocol: int) -> None:
    content = pickle.dumps(EVERYTHING, protocol)
    assert attempt(content)
    for length in range(len(content)):
        assert attempt(content[:length]) is None


@pytest.mark.parametrize("protocol", range(6))
def test_flipped_bits(protocol: int) -> None:
    content = pickle.dumps(EVERYTHING, protocol)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.Random(place).randrange(8)
        attempt(bytes(damaged))


@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    attempt(content)
    attempt(content + b".")


@given(
    st.lists(st.sampled_from([bytes([code]) for code in range(256)] + [b"cm\nC\n", b"K\x01", b"(", b")R"]), max_size=40)
)
def test_any_opcodes(opcodes: list[bytes]) -> None:
    attempt(b"(N]}\x8f)cm\nC\n" + b"".join(opcodes) + b".")


# Hostile --------------------------------------------------------------------------------------------------------------

WATCH = """
import json, pickle, sys
from pathlib import Path
from fgclip_doctor.sources import pickles, torch_file
from fgclip_doctor.sources.files import Unreadable

def read(path):
    if sys.argv[2] == "python" and path.suffix == ".pkl":
        return repr(pickle.loads(path.read_bytes()))
    try:
        return json.dumps(pickles.plain(torch_file.read(path), 1000))
    except Unreadable as error:
        return str(error)

directory = Path(sys.argv[1])
for warm in sorted(directory.glob("*.warm")):  # codecs are loaded at their first use
    read(warm)
events = []
def hook(event, args):
    if event == "builtins.id":
        return
    reading = event == "open" and not args[2] & 3  # neither O_WRONLY nor O_RDWR
    if not reading:
        events.append((event, repr(args)[:200]))
paths = sorted(directory.glob("*.pkl"))
sys.addaudithook(hook)
results = {path.name: read(path) for path in paths}
seen, events = events, []
# getrusage's maximum would count what the parent held when it forked
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
print(json.dumps({"events": seen, "results": results, "peak": peak}))
"""


def watched(directory: Path, content: dict[str, bytes], reader: str = "ours") -> dict[str, Any]:
    """What reading each of `content` gave, in a process that notes everything it does; the peak is in MiB."""
    for number, (name, one) in enumerate(content.items()):
        (directory / f"{number:03} {name.replace('/', ' ')}.pkl").write_bytes(one)
    for protocol in range(6):
        (directory / f"{protocol}.warm").write_bytes(pickle.dumps(["é", *EVERYTHING], protocol))
    (directory / "torn.warm").write_bytes(b"torn")
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(directory), reader], capture_output=True, text=True, check=False, timeout=300
    )
    assert not done.stderr, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert len(found["results"]) == len(content)
    return found


def test_hostile_pickles_do_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    found = watched(tmp_path, touching(mark))
    assert found["events"] == []
    assert not mark.exists()
    shown = " ".join(found["results"].values())
    assert '"stub": "posix.system"' in shown
    assert '"stub": "builtins.eval"' in shown


def test_the_watch_sees_what_python_would_have_done(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    found = watched(tmp_path, {"os.system": touching(mark)["os.system, protocol 2"]}, "python")
    assert mark.exists()
    assert "os.system" in {event for event, _ in found["events"]}


def test_exhausting_pickles_stay_small(tmp_path: Path) -> None:
    found = watched(tmp_path, exhausting())
    assert found["events"] == []
    assert found["peak"] < 500  # MiB
    refused = {name[4:-4]: line for name, line in found["results"].items() if "is not a sound pickle" in line}
    harmless = {
        "nested lists",
        "nested tuples",
        "ten to the sixty lists",
        "nested calls",
        "nested rebuilds",
        "duplicates",
        "memo index of text",
        "memo index of 4 billion",
        "cycle",
        "cycle through a tuple",
    }
    assert set(exhausting()) - set(refused) == harmless


def test_plain_stops_at_its_budget_and_depth() -> None:
    wide = pickles.plain([list(range(100))] * 100, budget=50)
    assert len(json.dumps(wide)) < 1000
    deep: Any = "end"
    for _ in range(100):
        deep = [deep]
    assert json.dumps(pickles.plain(deep)).count("[") < 40


def test_plain_shows_what_a_stub_holds() -> None:
    found = load(pickle.dumps({"arguments": Arguments(math.nan, Mode.STEPS), "set": {1}, "bytes": b"ab"}))
    shown = pickles.plain(found)
    assert shown["arguments"]["stub"] == f"{__name__}.Arguments"
    assert math.isnan(shown["arguments"]["state"]["lr"])
    assert shown["arguments"]["state"]["mode"] == {"stub": f"{__name__}.Mode", "args": ["steps"]}
    assert (shown["set"], shown["bytes"]) == ([1], "b'ab'")
