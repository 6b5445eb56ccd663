"""Sound artefacts of any content, and then with a few edits: audited to the end, or refused with one line.

``FGCLIP_DOCTOR_FUZZ=20000`` tries so many of each instead of a few.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tensorboard.compat.proto.event_pb2 import Event

from fgclip_doctor.run import Missing
from tests.fuzz.events import record
from tests.safety.audited import audited

thorough = settings(
    max_examples=int(os.environ.get("FGCLIP_DOCTOR_FUZZ", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMES = (  # of what checks look at
    "logit_scale",
    "logit_scale_finegraind",
    "module.logit_scale_hardneg",
    "region_image_queue",
    "region_text_queue",
    "queue_ptr",
    "queue_is_full",
    "training_steps",
    "visual_projection.weight",
    "text_projection.weight",
    "roi_projection.weight",
    "text_model.final_layer_norm.weight",
    "text_model.final_layer_norm.bias",
    "vision_model.embeddings.position_embedding.weight",
)
KEYS = (  # of what is known of a training
    "global_step",
    "max_steps",
    "log_history",
    "state_dict",
    "optimizer",
    "lr_scheduler",
    "args",
    "epoch",
    "loss",
    "loss_region",
    "learning_rate",
    "step",
    "lr",
    "betas",
    "params",
    "param_names",
    "exp_avg",
    "exp_avg_sq",
    "memory_bank_size",
    "memory_bank_warmup_steps",
    "memory_bank_clock",
    "use_memory_bank",
    "projection_dim",
    "vision_config",
    "hidden_act",
    "logit_scale_init_value",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "param_shapes",
    "module",
    "ds_config",
    "zero_stage",
    "partition_count",
    "base_optimizer_state",
    "single_partition_of_fp32_groups",
    "loops",
    "fit_loop",
    "last_epoch",
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float64, torch.int8)

text = st.text(max_size=12)
names = st.sampled_from(NAMES) | text
keys = st.sampled_from(KEYS) | text
numbers = (
    st.integers() | st.floats() | st.sampled_from([0, 1, 2, 100, 1e-4, 4.6, 512, 2**53, 2**63, -1, math.nan, math.inf])
)
scalars = numbers | st.none() | st.booleans() | text
shapes = st.lists(st.integers(0, 5), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any type and shape, with any values, transposed or expanded at times."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    value = draw(st.sampled_from([0.0, 1.0, -1.0, 4.6052, 1e30, -1e-30, math.nan, math.inf, 3.0]))
    if draw(st.booleans()) and shape:
        tensor = torch.linspace(-2, 2, max(math.prod(shape), 1))[: math.prod(shape)].reshape(shape).to(dtype)
    else:
        tensor = torch.full(shape, value, dtype=torch.float64).nan_to_num(0).to(dtype)
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    return tensor.expand(2, *tensor.shape) if draw(st.integers(0, 5)) == 0 else tensor


structures = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | st.integers(0, 3), inner, max_size=5)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)
weights = st.dictionaries(names, tensors(), max_size=6)
states = st.dictionaries(
    st.integers(0, 3), st.dictionaries(keys, scalars | tensors(), max_size=4) | scalars, max_size=4
)
groups = st.lists(
    st.fixed_dictionaries(
        {"params": st.lists(st.integers(0, 4), max_size=4) | scalars},
        optional={
            "lr": scalars,
            "weight_decay": scalars,
            "betas": structures,
            "param_names": st.lists(names, max_size=4),
        },
    ),
    max_size=3,
)
optimizers = st.fixed_dictionaries({"state": states, "param_groups": groups})
wrapped = st.fixed_dictionaries(
    {},
    optional={
        "state_dict": weights,
        "optimizer": optimizers,
        "lr_schedulers": structures,
        "args": structures,
        "global_step": scalars,
    },
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=20
)
edits = st.lists(
    st.tuples(st.sampled_from("fidcz"), st.floats(0, 1, exclude_max=True), st.binary(max_size=9)), max_size=4
)
Edits = list[tuple[str, float, bytes]]


def edited(data: bytes, changes: Edits) -> bytes:
    """With bits flipped, bytes put in, taken out, copied or cut off."""
    for kind, where, with_bytes in changes:
        at = int(where * len(data))
        before, after = data[:at], data[at:]
        match kind:
            case "f":
                data = before + bytes(a ^ b for a, b in zip(after, with_bytes, strict=False)) + after[len(with_bytes) :]
            case "i":
                data = before + with_bytes + after
            case "d":
                data = before + after[len(with_bytes) + 1 :]
            case "c":
                data = before + data[: 8 * len(with_bytes)] + after
            case _:
                data = before
    return data


def attempt(files: dict[str, bytes], *, alone: bool = False) -> None:
    """Audit a directory with these files, or the one that is there."""
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "run"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        with suppress(Missing):
            audited(folder / next(iter(files)) if alone else folder)


def saved(content: Any, *, older: bool = False) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        torch.save(content, file, _use_new_zipfile_serialization=not older)
        file.flush()
        return Path(file.name).read_bytes()


@thorough
@given(weights | structures | wrapped, st.booleans(), edits)
def test_what_torch_saved(content: Any, older: bool, changes: Edits) -> None:
    data = saved(content, older=older)
    for one in (data, edited(data, changes)):
        attempt({"pytorch_model.bin": one, "last.ckpt": one})
        attempt({"last.ckpt": one}, alone=True)


@thorough
@given(weights, optimizers, structures, structures, edits)
def test_a_trainers_checkpoint(model: Any, optimizer: Any, schedule: Any, arguments: Any, changes: Edits) -> None:
    files = {
        "pytorch_model.bin": saved(model),
        "optimizer.pt": saved(optimizer),
        "scheduler.pt": saved(schedule),
        "training_args.bin": saved(arguments),
    }
    attempt(files)
    attempt(files | {"optimizer.pt": edited(files["optimizer.pt"], changes)})


@thorough
@given(st.dictionaries(keys, structures, max_size=6), st.dictionaries(keys, structures, max_size=6), edits)
def test_deepspeeds_files(model: Any, inner: Any, changes: Edits) -> None:
    shard = saved({"optimizer_state_dict": inner, "zero_stage": 2})
    attempt(
        {
            "latest": b"global_step3",
            "global_step3/mp_rank_00_model_states.pt": saved(model),
            "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt": edited(shard, changes),
        }
    )


@thorough
@given(documents, documents, documents, documents, edits)
def test_json_of_any_content(state: Any, config: Any, adapter: Any, index: Any, changes: Edits) -> None:
    files = {
        "trainer_state.json": state,
        "config.json": config,
        "adapter_config.json": adapter,
        "model.safetensors.index.json": {"weight_map": index},
    }
    encoded = {name: json.dumps(content).encode() for name, content in files.items()}
    attempt(encoded)
    attempt({name: edited(content, changes) for name, content in encoded.items()})


@thorough
@given(st.lists(st.dictionaries(keys, scalars, max_size=5), max_size=12), st.integers(0, 3))
def test_a_history_of_any_content(entries: list[dict[str, Any]], first: int) -> None:
    history = [{"step": first + place, **entry} for place, entry in enumerate(entries)]
    attempt({"trainer_state.json": json.dumps({"global_step": 3, "log_history": history}).encode()})
    attempt({"log.jsonl": "\n".join(map(json.dumps, history)).encode()})


@thorough
@given(
    st.dictionaries(
        text,
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "C64", "BOOL", "U64"]) | scalars,
                "shape": shapes | scalars,
                "data_offsets": st.lists(st.integers(-1, 200), min_size=2, max_size=2) | scalars,
            }
        )
        | documents,
        max_size=4,
    ),
    st.binary(max_size=200),
)
def test_a_safetensors_header_of_any_content(entries: dict[str, Any], data: bytes) -> None:
    header = json.dumps(entries).encode()
    attempt({"model.safetensors": len(header).to_bytes(8, "little") + header + data})


@thorough
@given(st.dictionaries(names.filter(lambda name: name != "__metadata__"), shapes, max_size=5), edits)
def test_safetensors_of_any_shapes(named: dict[str, list[int]], changes: Edits) -> None:
    data = save({name: np.full(shape, 1.5, np.float32) for name, shape in named.items()})
    attempt({"model.safetensors": data})
    attempt({"model.safetensors": edited(data, changes)})


@thorough
@given(
    st.lists(st.tuples(text, st.integers(-(2**63), 2**63 - 1), st.floats(width=32)), max_size=12), st.floats(), edits
)
def test_events_of_any_content(rows: list[tuple[str, int, float]], wall: float, changes: Edits) -> None:
    messages = []
    for tag, step, value in rows * 3:
        event = Event(step=step, wall_time=wall)
        event.summary.value.add(tag=tag, simple_value=value)
        messages.append(event.SerializeToString())
    whole = b"".join(map(record, messages))
    attempt({"events.out.tfevents.1": whole, "b/events.out.tfevents.2": edited(whole, changes)})
    attempt({"events.out.tfevents.1": b"".join(record(edited(message, changes)) for message in messages)})


TEMPLATES: tuple[Callable[[str, float], str], ...] = (
    lambda name, value: f"step={value} {name}={value}",
    lambda name, value: f"{{'{name}': {value}, 'epoch': {value}}}",
    lambda name, value: f"Train Epoch: {value} [ {value}/12800 (1%)] {name}: {value} ({value}) Logit Scale: {value}",
    lambda name, value: f" 5%|#  | {value}/1000 [00:05<01:35, 9.95it/s, {name}={value}]\r",
    lambda name, value: f"[ACCUMULATED] Total: {value} | Global: {value} | {name}: {value}",
    lambda name, value: f"[Memory Bank] {name} enabled at step {value}",
    lambda name, value: f"Namespace({name}={value}, batch_size={value})",
    lambda name, value: f"{name},step,loss",
    lambda name, value: f"{value},{value},{value}",
    lambda name, value: f'{{"step": {value}, "{name}": {value}, "epoch": "{value}"}}',
    lambda name, value: f"2024-01-01 10:00:00,123 | INFO | rank {value} | {name} {value}",
    lambda name, value: f"{name}\t{value}\x1b[31m{value}\x1b[0m",
)
lines = st.builds(
    lambda template, name, value: template(name, value), st.sampled_from(TEMPLATES), keys, st.integers() | st.floats()
)


@thorough
@given(st.lists(lines, max_size=15), st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "latin-1"]), edits)
def test_logs_of_any_lines(content: list[str], encoding: str, changes: Edits) -> None:
    data = "\n".join(content).encode(encoding, "replace")
    attempt({"train.log": data, "metrics.csv": edited(data, changes)})
    attempt({"train.log": edited(data, changes)}, alone=True)
