"""Bytes as every JSON file of a checkpoint. The first byte chooses which."""

from __future__ import annotations

from pathlib import Path

NAMES = ("trainer_state.json", "config.json", "adapter_config.json", "model.safetensors.index.json", "run.log")
WORDS = (
    b'"log_history":[',
    b'{"step":1,"loss":',
    b'"global_step":',
    b'"weight_map":{',
    b'"memory_bank_size":',
    b'"projection_dim":',
    b'"vision_config":{',
    b'"logit_scale_init_value":',
    b'"hidden_act":',
    b'"target_modules":[',
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"null",
    b'"nan"',
)


def write(data: bytes, folder: Path) -> Path:
    """Write what `data` stands for into `folder`, which is empty. Returns what is to be audited."""
    (folder / NAMES[data[0] % len(NAMES)]).write_bytes(data[1:])
    return folder
