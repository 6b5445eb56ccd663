"""Nothing outside of what was asked for is read, and no name that is printed acts on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from fgclip_doctor.reports import terminal
from tests.fuzz.events import record
from tests.safety.audited import audited, printable
from tests.sources.hostile import text as pickled_text
from tests.sources.hostile import zipped

SECRET = "kept to itself"
HOSTILE = (  # names that a terminal, rich or a reader of lines would act on
    "\x1b[2Jcleared",
    "\x1b]0;title\x07",
    "\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31mC1",
    "[red]rich[/red]",
    "[link=https://example.org]x[/link]",
    "[/]",
    "\\[",
    ":warning:",
    "line\nerror: FGD999 made-up: a finding",
    "return\rover",
    "back\b\b\b\bspace",
    "\u202eright to left",
    "\u2066isolate\u2069",
    "\u200bnothing\ufeff",
    "\u2028separator\x85next",
    "tab\tnull\x00",
    "\ud800surrogate".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    "x" * 5_000,
    "../../etc/passwd",
)
ALLOWED = {*range(0x20, 0x7F), 0x0A}


def command(*arguments: str | Path) -> tuple[bytes, bytes, int]:
    """What the command itself prints, as bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "fgclip_doctor", "audit", *map(os.fsencode, arguments)],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    return done.stdout, done.stderr, done.returncode


def assert_inert(output: bytes) -> None:
    """Nothing but printable characters and the ends of lines, and no line that a name made up."""
    shown = output.decode("utf-8")
    assert printable(shown), ascii(shown)
    assert not any(line.startswith("error: FGD999") for line in shown.splitlines())


def weights(folder: Path) -> None:
    save_file({f"logit_scale{name}": torch.full((1,), 9.0) for name in HOSTILE}, folder / "model.safetensors")


def optimizer(folder: Path, hostile: Sequence[str] = HOSTILE) -> None:
    names = [f"logit_scale{name}" for name in hostile]
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in names]
    adam = torch.optim.AdamW(list(zip(names, parameters, strict=True)), weight_decay=0.1)
    for one in parameters:
        one.grad = torch.ones(1)
    adam.step()
    torch.save(adam.state_dict(), folder / "optimizer.pt")
    save_file({name: torch.full((1,), 9.0) for name in names}, folder / "model.safetensors")


def history(folder: Path) -> None:
    entries = [{"step": step, **{f"loss{name}": 1.386 for name in HOSTILE}} for step in range(60)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 60, "log_history": entries}))


def events(folder: Path) -> None:
    messages = []
    for name in HOSTILE:
        tag = f"loss{name}".encode()[:100]
        value = b"\x0a" + bytes([len(tag)]) + tag + b"\x15\x00\x00\x80\x3f"
        messages += [
            b"\x09" + bytes(8) + b"\x10" + bytes([n]) + b"\x2a" + bytes([len(value)]) + value for n in range(60)
        ]
    (folder / "events.out.tfevents.1").write_bytes(b"".join(map(record, messages)))


def log(folder: Path) -> None:
    lines = [f"step={step} loss{name}={1.386}" for step in range(60) for name in HOSTILE]
    (folder / "train.log").write_text("\n".join(lines), encoding="utf-8")
    (folder / "x.csv").write_text("step,loss\x1b[2J\n" + "".join(f"{step},nan\n" for step in range(60)))


def config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"hidden_act": HOSTILE[0], "model_type": HOSTILE[12]}))
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": HOSTILE, "r": 2}))
    torch.save({"lr_scheduler_type": HOSTILE[0], "loss_kind": HOSTILE[1]}, folder / "training_args.bin")


def problems(folder: Path) -> None:
    """Lines about what can't be read quote names from inside the files."""
    shards = {name: f"{name}.safetensors" for name in HOSTILE}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for number, name in enumerate(HOSTILE):
        storage = b"((" + pickled_text("storage") + b"ctorch\nFloatStorage\n" + pickled_text(name) + b"NK\x01tQ"
        (folder / f"checkpoint-{number}.pt").write_bytes(zipped(storage + b"0."))
    (folder / "latest").write_text(HOSTILE[0])


@pytest.mark.parametrize("write", [weights, optimizer, history, events, log, config, problems])
def test_names_print_inert(tmp_path: Path, write: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder)
    for options in (["--verbose"], ["--show-parse"]):
        out, err, _ = command(folder, *options)
        assert_inert(out)
        assert_inert(err)
    out, err, _ = command(folder, "--format", "json")
    assert set(out) <= ALLOWED  # escapes and all
    assert_inert(err)
    if out:
        json.loads(out)


@pytest.mark.parametrize("width", [40, 100])
def test_names_print_inert_on_a_terminal(tmp_path: Path, width: int) -> None:
    """The boxes of the report for terminals: no markup in a name becomes a colour or a link."""
    optimizer(tmp_path, HOSTILE if width == 40 else [".[red]rich[/red][/]"])
    history(tmp_path)
    _, report = audited(tmp_path)
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(terminal.render(report, verbose=True))
    assert printable(shown.get()), ascii(shown.get())
    assert width == 40 or "logit_scale.[red]rich[/red][/]" in shown.get()


def test_the_path_itself_prints_inert(tmp_path: Path) -> None:
    for number, name in enumerate(("\x1b[2J", "[red]x[/red]", "a\nb", "\u202eevil", os.fsdecode(b"\xff\xfe"))):
        folder = tmp_path / str(number) / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"junk")
        weights(folder / "..")
        for path in (folder, folder / "no", folder / ".." / "model.safetensors"):
            out, err, code = command(path, "--format", "json" if path == folder else "text")
            assert code in (0, 1, 2)
            assert_inert(out)
            assert_inert(err)


# Directories ----------------------------------------------------------------------------------------------------------


def outside(tmp_path: Path) -> tuple[Path, Path]:
    """A directory to audit, and one beside it with what must not be read."""
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    save_file({f"logit_scale.{SECRET}": torch.ones(1)}, other / "model.safetensors")
    torch.save({"state": {}, "param_groups": [], SECRET: 1}, other / "optimizer.pt")
    (other / "train.log").write_text("".join(f"step={n} loss_{SECRET.replace(' ', '_')}=1.5\n" for n in range(9)))
    (other / "events.out.tfevents.1").write_bytes(record(b"\x09" + bytes(8) + b"\x2a\x0d\x0a\x06secret\x15" + bytes(4)))
    (folder / "config.json").write_text('{"projection_dim": 7}')
    return folder, other


@pytest.mark.parametrize(
    "shard",
    [
        "../other/model.safetensors",
        "sub/../../other/model.safetensors",
        "/etc/passwd",
        "link",
        "folder/model.safetensors",
    ],
)
def test_no_shard_leads_out(tmp_path: Path, shard: str) -> None:
    folder, other = outside(tmp_path)
    (folder / "link").symlink_to(other / "model.safetensors")
    (folder / "folder").symlink_to(other, target_is_directory=True)
    index = {"weight_map": {"logit_scale": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    run, report = audited(folder)
    assert not (run.tensors if run.checkpoints else {})
    assert any("points outside the directory" in line for line in report.problems)


def test_no_link_to_a_log_leads_out(tmp_path: Path) -> None:
    folder, other = outside(tmp_path)
    for name in ("train.log", "events.out.tfevents.1"):
        (folder / name).symlink_to(other / name)
    (folder / "logs").symlink_to(other, target_is_directory=True)
    run, report = audited(folder)
    assert not run.series
    assert sum("points outside the directory" in line for line in report.problems) == 2


def test_no_tag_of_deepspeed_leads_out(tmp_path: Path) -> None:
    folder, other = outside(tmp_path)
    torch.save({"module": {}}, other / "mp_rank_00_model_states.pt")
    for tag in ("../other", str(other), "link"):
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to(other, target_is_directory=True)
        (folder / "latest").write_text(tag)
        run, report = audited(folder)
        assert not run.checkpoints or not run.tensors
        assert any("points outside the directory" in line for line in report.problems)


@pytest.mark.parametrize("name", ["../other/x.distcp", "/etc/passwd", "link/x.distcp"])
def test_no_shard_of_torch_leads_out(tmp_path: Path, name: str) -> None:
    import torch.distributed.checkpoint as dcp

    folder, other = outside(tmp_path)
    (folder / "link").symlink_to(other, target_is_directory=True)
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save({"model": {"logit_scale": torch.ones(1)}}, checkpoint_id=folder, no_dist=True)
    metadata = (folder / ".metadata").read_bytes()
    old = b"\x8c\x0c__0_0.distcp"  # as protocol 4 has short texts
    assert old in metadata
    (folder / "__0_0.distcp").rename(other / "x.distcp")
    (folder / ".metadata").write_bytes(metadata.replace(old, pickled_text(name)))
    run, report = audited(folder)
    assert not run.checkpoints or not run.tensors
    assert any("points outside the directory" in line for line in report.problems)


def test_members_of_archives_are_never_written(tmp_path: Path) -> None:
    folder, _ = outside(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    names = {"../../../out": b"x", "data/../../../out": b"x"}
    (folder / "pytorch_model.bin").write_bytes(zipped(b"}.", **names))
    audited(folder)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, folder / "pytorch_model.bin"])
