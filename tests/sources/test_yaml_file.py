from __future__ import annotations

from pathlib import Path

import pytest

from fgclip_doctor.sources import yaml_file
from fgclip_doctor.sources.files import Unreadable


def test_a_mapping_of_typed_values(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("lr: 5e-6\nsteps: 10\non: true\nname: 'a: b'\nbank: {rows: [1, 2.5]}\nnothing: null\n3: x\n")
    assert yaml_file.read(path) == {
        "lr": 5e-6,
        "steps": 10,
        "on": True,
        "name": "a: b",
        "bank": {"rows": [1, 2.5]},
        "nothing": "null",
        "3": "x",
    }


BOMB = "a: &a [1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "aliases are not followed"),
        ("a: &a {b: *a}", "aliases are not followed"),
        ("[" * 20_000, "nested too deeply"),
        ("a: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("? [1]\n: 2", "is not YAML"),
        ("", "is not a YAML mapping"),
        ("- 1", "is not a YAML mapping"),
        ("--- 1\n--- 2", "is not YAML"),
        ("a: " + "x" * yaml_file.LIMIT, "too large"),
        ("a: \x00", "is not YAML"),
        ("\udcff: 1", "is not YAML"),
    ],
)
def test_the_rest_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Unreadable, match=reason) as caught:
        yaml_file.read(path)
    assert "\n" not in str(caught.value)


def test_tags_make_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    mark = tmp_path / "mark"
    path.write_text(f"a: !!python/object/apply:os.system ['touch {mark}']\nb: !!int ''\nc: !!timestamp x\n")
    assert yaml_file.read(path) == {"a": [f"touch {mark}"], "b": "", "c": "x"}
    assert not mark.exists()
