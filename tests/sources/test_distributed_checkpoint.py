"""Directories that torch.distributed.checkpoint itself wrote, in one process or cut as several would cut them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from fgclip_doctor.sources import load
from fgclip_doctor.sources.files import Unreadable

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Linear(3, 4)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.visual(x) * self.logit_scale).sum()


def trained() -> tuple[Model, torch.optim.AdamW]:
    model = Model()
    groups = [{"params": [model.visual.weight], "lr": 0.1}, {"params": [model.logit_scale, model.visual.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for _ in range(2):
        model(torch.ones(2, 3)).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("layout", ["both", "app", "two directories", "weights at the root"])
def test_what_was_saved_comes_back_by_name(tmp_path: Path, layout: str, flattened: bool) -> None:
    model, optimizer = trained()
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    weights, state = get_state_dict(model, optimizer, options=options)
    directory = tmp_path / "checkpoint-2"
    match layout:
        case "both":
            dcp.save({"model": weights, "optim": state, "step": 2}, checkpoint_id=directory, no_dist=True)
        case "app":
            dcp.save({"app": {"model": weights, "optim": state}}, checkpoint_id=directory, no_dist=True)
        case "two directories":  # as accelerate leaves them, and so the Trainer
            dcp.save({"model": weights}, checkpoint_id=directory / "pytorch_model_fsdp_0", no_dist=True)
            dcp.save({"optimizer": state}, checkpoint_id=directory / "optimizer_0", no_dist=True)
            (directory / "trainer_state.json").write_text('{"global_step": 2}')
        case _:  # as torchtitan does
            dcp.save({**weights, "optimizer": state}, checkpoint_id=directory, no_dist=True)
    run = load([directory])
    assert not run.problems
    assert run.step == 2
    assert set(run.tensors) == set(weights)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(run.tensors[name].values(), parameter.detach().numpy())
        index = run.optimizer.index_of(name)
        assert index is not None
        exp_avg = run.optimizer.states[index].exp_avg
        assert exp_avg is not None
        np.testing.assert_array_equal(exp_avg.values(), optimizer.state[parameter]["exp_avg"].numpy())
        assert run.optimizer.states[index].step == 2
        assert run.optimizer.group_of(index).lr == (0.1 if name == "visual.weight" else 0.01)


def test_an_optimizer_by_name_in_one_file(tmp_path: Path) -> None:
    """What FSDP's full state dict is."""
    model, optimizer = trained()
    _, state = get_state_dict(model, optimizer)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "optimizer.bin")
    names = load([tmp_path]).optimizer.names
    assert sorted(names.values()) == [("logit_scale",), ("visual.bias",), ("visual.weight",)]


def sharded(directory: Path, tensor: torch.Tensor, boxes: list[tuple[slice, ...]], name: str = "w") -> None:
    """One tensor cut into boxes, each by another rank: real pieces and a real index, put together by hand."""
    directory.mkdir()
    chunks, places = [], {}
    for rank, box in enumerate(boxes):
        piece, written = tensor[box].clone(), io.BytesIO()
        torch.save(piece, written)
        (directory / f"__{rank}_0.distcp").write_bytes(b"padding" + written.getvalue())
        corner = torch.Size([cut.start for cut in box])
        chunks.append(ChunkStorageMetadata(corner, piece.shape))
        places[MetadataIndex(name, corner)] = _StorageInfo(f"__{rank}_0.distcp", 7, written.tell())
    entry = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
    content = pickle.dumps(Metadata({name: entry}, storage_data=places))
    (directory / ".metadata").write_bytes(content)


ROWS = [(slice(0, 3), slice(0, 4)), (slice(3, 5), slice(0, 4))]
BOXES = [(slice(0, 5), slice(2, 4)), (slice(0, 5), slice(0, 2))]


@pytest.mark.parametrize("boxes", [ROWS, BOXES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boxes_are_joined(tmp_path: Path, boxes: list[Any], dtype: torch.dtype) -> None:
    tensor = torch.arange(20.0).reshape(5, 4).to(dtype)
    sharded(tmp_path / "x", tensor, boxes)
    torch.save({"w": tensor}, tmp_path / "x.pt")
    joined, whole = load([tmp_path / "x"]).tensors["w"], load([tmp_path / "x.pt"]).tensors["w"]
    np.testing.assert_array_equal(joined.values(), whole.values())
    assert joined.statistics == pytest.approx(whole.statistics)
    assert (joined.digest == whole.digest) == (boxes is ROWS)


def test_a_missing_shard_costs_a_line(tmp_path: Path) -> None:
    sharded(tmp_path / "x", torch.ones(5, 4), ROWS)
    sharded(tmp_path / "y", torch.ones(5, 4), ROWS)
    (tmp_path / "x" / "__1_0.distcp").unlink()
    with pytest.raises(Unreadable, match=r"x/__1_0\.distcp: is missing"):
        load([tmp_path / "x"])
    path = tmp_path / "y" / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Unreadable, match=r"y/__1_0\.distcp: ends early"):
        load([tmp_path / "y"])


def test_boxes_that_leave_a_gap(tmp_path: Path) -> None:
    sharded(tmp_path / "x", torch.ones(5, 4), ROWS[:1])
    with pytest.raises(Unreadable, match="doesn't hold all pieces of w"):
        load([tmp_path / "x"]).tensors["w"].values()


def test_a_damaged_piece_is_told_when_it_is_read(tmp_path: Path) -> None:
    sharded(tmp_path / "x", torch.ones(5, 4), ROWS)
    (tmp_path / "x" / "__1_0.distcp").write_bytes(bytes(1 << 16))
    with pytest.raises(Unreadable, match=r"__1_0\.distcp"):
        _ = load([tmp_path / "x"]).tensors["w"].statistics


def test_shards_stay_in_the_directory(tmp_path: Path) -> None:
    sharded(tmp_path / "x", torch.ones(5, 4), ROWS)
    path = tmp_path / "x" / ".metadata"
    path.write_bytes(path.read_bytes().replace(b"__1_0.distcp", b"../secret.pt"))
    with pytest.raises(Unreadable, match="points outside the directory"):
        load([tmp_path / "x"])


@pytest.mark.parametrize("content", [b"", b"N.", pickle.dumps({"state_dict_metadata": 1}), b"\x80\x04cos\nsystem\n."])
def test_an_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(Unreadable, match=r"\.metadata: "):
        load([tmp_path])


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_torn_anywhere(tmp_path: Path, name: str) -> None:
    """One line that begins with a path of the checkpoint, at the start or when the tensor is read."""
    sharded(tmp_path / "x", torch.ones(5, 4), ROWS)
    path = tmp_path / "x" / name
    content = path.read_bytes()
    for end in range(0, len(content), 23):
        path.write_bytes(content[:end])
        with pytest.raises(Unreadable) as caught:
            _ = load([tmp_path / "x"]).tensors["w"].statistics
        assert str(caught.value).startswith(str(tmp_path / "x"))
        assert "\n" not in str(caught.value)
