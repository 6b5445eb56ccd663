"""DeepSpeed's layouts, written by hand from its zero_to_fp32.py, ds_to_universal.py and engine: it needs a GPU to run.

Every test trains two parameter groups for real, with torch's AdamW over flat 32-bit stretches, as the ranks would.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fgclip_doctor.run import Run
from fgclip_doctor.sources import load

SHAPES = [{"visual.weight": (5, 3), "visual_projection.weight": (4, 3)}, {"visual.bias": (5,), "logit_scale": ()}]
CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 8,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
}
STEPS = 3


class Trained:
    """The same small model, trained as plain parameters in 32 bits."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.groups = [
            {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in group.items()}
            for group in SHAPES
        ]
        self.parameters = {name: one for group in self.groups for name, one in group.items()}
        options = ({"lr": 1e-3, "weight_decay": 0.1}, {"lr": 1e-4, "weight_decay": 0.0})
        groups = [{"params": list(g.values()), **o} for g, o in zip(self.groups, options, strict=True)]
        self.optimizer = torch.optim.AdamW(groups)
        for _ in range(STEPS):
            for one in self.parameters.values():
                one.grad = torch.randn(one.shape, generator=generator)
            self.optimizer.step()

    def flat(self, group: int, key: str) -> torch.Tensor:
        values = self.groups[group].values()
        chosen = [one.detach() if key == "fp32" else self.optimizer.state[one][key] for one in values]
        return torch.cat([one.reshape(-1) for one in chosen])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: one.detach().bfloat16() for name, one in self.parameters.items()}

    def options(self) -> list[dict[str, Any]]:
        groups = self.optimizer.state_dict()["param_groups"]
        return [{**group, "params": [place]} for place, group in enumerate(groups)]


def write(directory: Path, stage: int, ranks: int, *, elastic: bool = False, group_step: bool = False) -> Trained:
    """A directory of one step, as `ranks` processes leave it."""
    directory.mkdir(parents=True)
    trained = Trained()
    keys = ("fp32", "exp_avg", "exp_avg_sq")
    stretches = [
        [{key: stretch(trained, g, key, stage, ranks, r) for key in keys} for g in (0, 1)] for r in range(ranks)
    ]
    model = {
        "module": trained.state_dict() | {"queue_ptr": torch.zeros(1, dtype=torch.int64)},
        "buffer_names": ["queue_ptr"],
        "param_shapes": [OrderedDict((n, torch.Size(s)) for n, s in group.items()) for group in SHAPES],
        "optimizer": None,
        "lr_scheduler": None,
        "global_steps": STEPS,
        "global_samples": STEPS * 64,
        "skipped_steps": 0,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "ds_config": CONFIG,
        "ds_version": "0.17.1",
    }
    for rank, groups in enumerate(stretches):
        states = {g: {k: v for k, v in one.items() if k != "fp32"} | {"step": STEPS} for g, one in enumerate(groups)}
        options = trained.options()
        if group_step:
            for g, state in states.items():
                del state["step"]
                options[g]["step"] = STEPS
        base: Any = {"state": states, "param_groups": options}
        if stage == 3:
            inner = {"optimizer_state_dict": base, "fp32_flat_groups": [one["fp32"] for one in groups]}
            hollow = {name: torch.empty(0, dtype=torch.bfloat16) for name in trained.parameters}
            content = {**model, "module": {**model["module"], **hollow}}
            torch.save(content, directory / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        else:
            flats = [one["fp32"] for one in groups]
            inner = {"base_optimizer_state": base, "single_partition_of_fp32_groups": flats, "clip_grad": 1.0}
            if elastic:
                inner |= {"base_optimizer_state": [states[0], states[1]], "base_optimizer_state_step": STEPS}
        inner |= {
            "zero_stage": stage,
            "partition_count": ranks if stage == 3 else [ranks, ranks],
            "ds_version": "0.17.1",
        }
        prefix = "bf16_" if stage == 1 else ""
        name = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": inner, "ds_config": CONFIG}, directory / name)
    if stage < 3:
        torch.save(model, directory / "mp_rank_00_model_states.pt")
    return trained


def stretch(trained: Trained, group: int, key: str, stage: int, ranks: int, rank: int) -> torch.Tensor:
    """The part of a group that a rank keeps."""
    if stage < 3:  # the group in a row, padded to twice the ranks; the masters lose the padding when they are saved
        flat = trained.flat(group, key)
        share = 2 * math.ceil(flat.numel() / (2 * ranks))
        padded = torch.nn.functional.pad(flat, (0, share * ranks - flat.numel()))
        return (flat if key == "fp32" else padded)[rank * share : (rank + 1) * share].clone()
    parts = []
    for one in trained.groups[group].values():  # each parameter by itself, padded to a multiple of the ranks
        values = (one.detach() if key == "fp32" else trained.optimizer.state[one][key]).reshape(-1)
        share = math.ceil(values.numel() / ranks)
        parts.append(torch.nn.functional.pad(values, (0, share * ranks - values.numel()))[rank * share :][:share])
    return torch.cat(parts)


def same(run: Run, trained: Trained) -> None:
    """Masters, moments, steps, options and names are those of the training, by parameter."""
    optimizer = run.optimizer
    assert set(optimizer.names.values()) == {(name,) for name in trained.parameters}
    for name, parameter in trained.parameters.items():
        index = optimizer.index_of(name)
        assert index is not None
        state, expected = optimizer.states[index], trained.optimizer.state[parameter]
        assert run.tensors[name].dtype == "float32"
        np.testing.assert_array_equal(run.tensors[name].values(), parameter.detach().numpy())
        assert state.exp_avg is not None
        assert state.exp_avg_sq is not None
        np.testing.assert_array_equal(state.exp_avg.values(), expected["exp_avg"].numpy())
        np.testing.assert_array_equal(state.exp_avg_sq.values(), expected["exp_avg_sq"].numpy())
        assert state.exp_avg.statistics.norm == pytest.approx(float(expected["exp_avg"].norm()))
        assert state.step == STEPS
        group = optimizer.group_of(index)
        assert (group.lr, group.weight_decay) == ((1e-3, 0.1) if name in trained.groups[0] else (1e-4, 0.0))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_masters_and_moments_by_parameter(tmp_path: Path, stage: int, ranks: int) -> None:
    trained = write(tmp_path / "global_step3", stage, ranks)
    run = load([tmp_path / "global_step3"])
    same(run, trained)
    assert not run.problems
    assert run.step == STEPS
    assert run.tensors["queue_ptr"].item() == 0
    facts = {name: fact.value for name, fact in run.facts.items()}
    expected = {"micro_batch": 4, "accumulation": 8, "max_grad_norm": 1.0, "bf16": True, "fp16": False}
    expected |= {"world_size": ranks, "global_step": STEPS, "skipped_steps": 0}
    assert facts.items() >= expected.items()


def test_joined_parameters_hash_like_whole_ones(tmp_path: Path) -> None:
    trained = write(tmp_path / "global_step3", 2, 3)
    save_file({name: one.detach().clone() for name, one in trained.parameters.items()}, tmp_path / "x.safetensors")
    whole = load([tmp_path / "x.safetensors"]).tensors
    joined = load([tmp_path / "global_step3"]).tensors
    assert all(joined[name].digest == whole[name].digest for name in trained.parameters)


def test_the_trainers_bf16_weights_are_known_to_have_masters(tmp_path: Path) -> None:
    trained = write(tmp_path / "checkpoint-3" / "global_step3", 2, 2)
    write(tmp_path / "checkpoint-3" / "global_step2", 2, 2)
    (tmp_path / "checkpoint-3" / "latest").write_text("global_step3")
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3, "max_steps": 9}')
    save_file(
        {f"model.{n}": one for n, one in trained.state_dict().items()}, tmp_path / "checkpoint-3/model.safetensors"
    )
    for path in (tmp_path, tmp_path / "checkpoint-3"):
        run = load([path])
        assert len(run.checkpoints) == 1
        same(run, trained)
        assert (run.step, run.number("max_steps")) == (3, 9)


def test_a_run_directory_of_several_steps(tmp_path: Path) -> None:
    write(tmp_path / "global_step100", 2, 1)
    write(tmp_path / "global_step20", 2, 1)
    (tmp_path / "latest").write_text("global_step100")
    assert [Path(one.path).name for one in load([tmp_path]).checkpoints] == ["global_step20", "global_step100"]


def test_a_step_that_the_groups_count(tmp_path: Path) -> None:
    trained = write(tmp_path / "a", 2, 2, group_step=True)
    same(load([tmp_path / "a"]), trained)


def test_elastic_state_has_no_options(tmp_path: Path) -> None:
    trained = write(tmp_path / "a", 2, 2, elastic=True)
    optimizer = load([tmp_path / "a"]).optimizer
    assert optimizer.step == STEPS
    assert [group.lr for group in optimizer.groups] == [None, None]
    assert len(optimizer.names) == len(trained.parameters)


def test_clipping_that_the_configuration_leaves_out_is_off(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-3" / "global_step3", 2, 1)
    path = tmp_path / "checkpoint-3" / "global_step3" / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=False)
    content["ds_config"] = {key: value for key, value in CONFIG.items() if key != "gradient_clipping"}
    torch.save(content, path)
    torch.save({"max_grad_norm": 1.0}, tmp_path / "checkpoint-3" / "training_args.bin")
    run = load([tmp_path / "checkpoint-3"])
    assert (run.number("max_grad_norm"), run.number("clipping_asked")) == (0, 1)


def unnamed(directory: Path) -> str:
    """Why the parameters have no names; the weights are then the model's own."""
    run = load([directory])
    assert run.optimizer.names == {}
    assert run.optimizer.step == STEPS
    assert run.optimizer.states[0].exp_avg_sq is not None
    assert run.optimizer.states[0].exp_avg_sq.statistics.maximum > 0
    assert run.tensors["logit_scale"].dtype == "bfloat16"
    return run.optimizer.naming


def change(path: Path, key: str, value: Any) -> None:
    content = torch.load(path, weights_only=False)
    (content if key in content else content["optimizer_state_dict"])[key] = value
    torch.save(content, path)


def test_no_map_where_the_layout_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "a", 2, 2)
    (tmp_path / "a" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert unnamed(tmp_path / "a") == "not named: 1 of 2 optimizer files are there"
    write(tmp_path / "b", 2, 1)
    change(tmp_path / "b" / "mp_rank_00_model_states.pt", "param_shapes", None)
    assert "no param_shapes" in unnamed(tmp_path / "b")
    write(tmp_path / "d", 2, 1, elastic=True)
    change(tmp_path / "d" / "mp_rank_00_model_states.pt", "param_shapes", None)
    assert "no param_shapes" in unnamed(tmp_path / "d")
    assert load([tmp_path / "d"]).optimizer.indices == (0, 1)
    write(tmp_path / "e", 2, 2)
    (tmp_path / "e" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    assert "32-bit parameters are missing" in unnamed(tmp_path / "e")
    write(tmp_path / "c", 2, 1)
    change(tmp_path / "c" / "mp_rank_00_model_states.pt", "param_shapes", [SHAPES[0], {"logit_scale": ()}])
    assert "group 1 holds 6 values where its names need 1" in unnamed(tmp_path / "c")


def test_no_map_that_the_models_own_values_contradict(tmp_path: Path) -> None:
    """Two parameters in another order fit as well by their sizes."""
    write(tmp_path / "a", 2, 2)
    other = dict(reversed(SHAPES[1].items()))
    change(tmp_path / "a" / "mp_rank_00_model_states.pt", "param_shapes", [SHAPES[0], other])
    assert "are not those of the model" in unnamed(tmp_path / "a")


def test_model_parallel_ranks_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "a", 2, 1)
    for name in ("mp_rank_{}_model_states.pt", "zero_pp_rank_0_mp_rank_{}_optim_states.pt"):
        (tmp_path / "a" / name.format("01")).write_bytes((tmp_path / "a" / name.format("00")).read_bytes())
    assert "2 model-parallel ranks" in unnamed(tmp_path / "a")
    assert "2 model-parallel ranks" in load([tmp_path / "a"]).checkpoint.partial


def test_a_torn_file_costs_a_line(tmp_path: Path) -> None:
    write(tmp_path / "a", 2, 2)
    path = tmp_path / "a" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(path.read_bytes()[:-100])
    run = load([tmp_path / "a"])
    assert [line.startswith(str(path)) for line in run.problems] == [True]
    assert run.tensors["logit_scale"].dtype == "bfloat16"
    assert run.optimizer.names == {}


def test_latest_stays_in_the_directory(tmp_path: Path) -> None:
    write(tmp_path / "run" / "global_step3", 2, 1)
    write(tmp_path / "secret", 2, 1)
    save_file({"logit_scale": torch.ones(())}, tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "latest").write_text("../secret")
    assert "points outside" in "".join(load([tmp_path / "run"]).problems)


def test_stage_0_in_16_bits_has_no_names(tmp_path: Path) -> None:
    trained = write(tmp_path / "a", 2, 1)
    (tmp_path / "a" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    states = {
        g: {"step": STEPS, "exp_avg": trained.flat(g, "exp_avg"), "exp_avg_sq": trained.flat(g, "exp_avg_sq")}
        for g in (0, 1)
    }
    inner = {"state": states, "param_groups": trained.options()}
    flats = [trained.flat(g, "fp32") for g in (0, 1)]
    path = tmp_path / "a" / "mp_rank_00_model_states.pt"
    change(path, "optimizer", {"optimizer_state_dict": inner, "fp32_groups_flat": flats})
    change(path, "param_shapes", None)
    assert "no param_shapes" in unnamed(tmp_path / "a")


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_torn_anywhere(tmp_path: Path, name: str) -> None:
    """The other file is still read, and the line is one."""
    write(tmp_path / "a", 2, 1)
    path = tmp_path / "a" / name
    content = path.read_bytes()
    for end in range(0, len(content), 331):
        path.write_bytes(content[:end])
        run = load([tmp_path / "a"])
        assert [line.startswith(f"{path}: ") and "\n" not in line for line in run.problems] == [True]
        assert bool(run.checkpoint.tensors) == ("optim" in name)
        assert (run.checkpoint.optimizer is not None) == ("model" in name)
