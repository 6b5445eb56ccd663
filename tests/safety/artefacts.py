"""One small artefact of every format that is understood, as its writer leaves it: to be cut, flipped and mutated."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from tensorboard.compat.proto.event_pb2 import Event

from tests.sources.test_deepspeed import write as write_deepspeed
from tests.sources.test_tensorboard_events import event
from tests.sources.test_tensorboard_events import write as write_events

LOGS = Path(__file__).parents[1] / "sources" / "logs"
TRACKERS = Path(__file__).parents[1] / "sources" / "fixtures" / "trackers"
STEPS = 3


class Model(torch.nn.Module):
    """A role of every kind, in the smallest size."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_projection = torch.nn.Linear(3, 2, bias=False)
        self.text_projection = torch.nn.Linear(3, 2, bias=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
        self.register_buffer("region_image_queue", torch.nn.functional.normalize(torch.randn(2, 5), dim=0))
        self.register_buffer("queue_ptr", torch.tensor([3]))


class Training:
    """A model after three steps, with its optimizer and schedule."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer)
        for _ in range(STEPS):
            for parameter in self.model.parameters():
                parameter.grad = torch.randn_like(parameter)
            self.optimizer.step()
            self.schedule.step()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def trainers_pieces(self, folder: Path) -> None:
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.schedule.state_dict(), folder / "scheduler.pt")
        torch.save({"per_device_train_batch_size": 4, "max_steps": 9}, folder / "training_args.bin")
        history = [{"step": step, "loss": 1.4, "loss_global": 1.5, "learning_rate": 1e-3} for step in range(1, 9)]
        state = {"global_step": STEPS, "log_history": history}
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=1))
        (folder / "config.json").write_text(json.dumps({"projection_dim": 2, "memory_bank_size": 5}))


def _safetensors(folder: Path) -> None:
    training = Training()
    save_file(training.weights(), folder / "model.safetensors")
    training.trainers_pieces(folder)


def _bin(folder: Path) -> None:
    torch.save(Training().weights(), folder / "pytorch_model.bin")


def _sharded(folder: Path) -> None:
    tensors = Training().weights()
    names = {name: f"model-{1 + place % 2:05}-of-00002.safetensors" for place, name in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({name: tensors[name] for name in names if names[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _legacy(folder: Path) -> None:
    torch.save(Training().weights(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _adapter(folder: Path) -> None:
    save_file({"base.q.lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["q"]}))


def _lightning(folder: Path) -> None:
    training = Training()
    content = {
        "global_step": STEPS,
        "state_dict": {f"model.{name}": tensor for name, tensor in training.weights().items()},
        "optimizer_states": [training.optimizer.state_dict()],
        "lr_schedulers": [training.schedule.state_dict()],
        "hyper_parameters": {"batch_size": 4},
    }
    torch.save(content, folder / "epoch=0-step=3.ckpt")


def _torchscript(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "clip.pt")


def _distributed(folder: Path) -> None:
    training = Training()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are no other processes
        content = {"model": training.weights(), "optimizer": training.optimizer.state_dict(), "step": STEPS}
        dcp.save(content, checkpoint_id=folder, no_dist=True)


def _deepspeed(stage: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        write_deepspeed(folder / f"global_step{STEPS}", stage, 2)
        (folder / "latest").write_text(f"global_step{STEPS}")

    return write


def _events(folder: Path) -> None:
    events = [event(step, **{"loss/total": 1.4, "loss_global": 1.5}) for step in range(12)]
    text = Event(step=0, wall_time=1.0)
    value = text.summary.value.add(tag="args/text_summary")
    value.metadata.plugin_data.plugin_name = "text"
    value.tensor.dtype = 7
    value.tensor.tensor_shape.dim.add(size=1)
    value.tensor.string_val.append(b'{"per_device_train_batch_size": 4}')
    write_events(folder / "events.out.tfevents.1", [Event(wall_time=1.0, file_version="brain.Event:2"), text, *events])


def _log(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copyfile(LOGS / name, folder / name) and None


def _csv(folder: Path) -> None:
    rows = [f"{step},{1.5 - step / 100},{1e-4}" for step in range(30)]
    (folder / "metrics.csv").write_text("\n".join(["step,loss,learning_rate", *rows]) + "\n")


def _jsonl(folder: Path) -> None:
    rows = [json.dumps({"step": step, "loss": 1.5, "terms": {"region": "nan"}}) for step in range(30)]
    (folder / "log.jsonl").write_text("\n".join(rows) + "\n")


def _copied(*parts: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(TRACKERS.joinpath(*parts), folder, dirs_exist_ok=True) and None


def _database(folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(gzip.decompress((TRACKERS / "mlflow" / "mlflow.db.gz").read_bytes()))


FORMATS: dict[str, Callable[[Path], None]] = {
    "a Trainer's checkpoint": _safetensors,
    "torch's zip": _bin,
    "torch's older stream": _legacy,
    "shards": _sharded,
    "an adapter": _adapter,
    "Lightning": _lightning,
    "TorchScript": _torchscript,
    "torch.distributed.checkpoint": _distributed,
    "DeepSpeed 2": _deepspeed(2),
    "DeepSpeed 3": _deepspeed(3),
    "TensorBoard": _events,
    "CSV": _csv,
    "JSON lines": _jsonl,
    "W&B": _copied("wandb"),
    "MLflow": _copied("mlflow", "mlruns"),
    "MLflow's database": _database,
    **{name: _log(name) for name in sorted(os.listdir(LOGS)) if name != "README.md"},  # noqa: PTH208
}


def write(name: str, folder: Path) -> list[Path]:
    """Write the artefact of a format into `folder`. Returns its files."""
    folder.mkdir(parents=True, exist_ok=True)
    FORMATS[name](folder)
    return sorted(_files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
