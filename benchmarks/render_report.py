"""What the page costs: a run of 200 checkpoints and 200,000 logged steps, audited to text and to HTML in turns."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CHECKPOINTS, EVERY, ROUNDS = 200, 1000, 3


def make(directory: Path) -> None:
    random = np.random.default_rng(0)
    layers = [f"vision_model.encoder.layers.{layer}.{part}.weight" for layer in range(12) for part in ("fc1", "fc2")]
    weights = {name: random.normal(0, 0.05, (32, 32)).astype(np.float32) for name in layers}
    heads = {
        f"{kind}_projection.weight": random.normal(size=(32, 32)).astype(np.float32) for kind in ("visual", "text")
    }
    history = [
        {
            "step": step,
            "loss_global": random.normal(1.4, 0.2),
            "loss_region": random.normal(1.5, 0.3),
            "learning_rate": 1e-4 * (1 - step / (CHECKPOINTS * EVERY)),
            "grad_norm": random.lognormal(),
        }
        for step in range(1, CHECKPOINTS * EVERY + 1)
    ]
    for number in range(1, CHECKPOINTS + 1):
        saved = directory / f"checkpoint-{number * EVERY}"
        saved.mkdir()
        weights = {name: value + np.float32(1e-4) for name, value in weights.items()}
        save_file(weights | heads | {"logit_scale": np.array(4.6, np.float32)}, saved / "model.safetensors")
        log = history if number == CHECKPOINTS else history[(number - 1) * EVERY : number * EVERY]
        (saved / "trainer_state.json").write_text(json.dumps({"global_step": number * EVERY, "log_history": log}))


def cpu_seconds(directory: Path, form: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["audit", "run", "--no-cache", "--fact", "micro_batch=4", "--format", form, "--output", f"report.{form}"]
    subprocess.run([sys.executable, "-m", "fgclip_doctor", *words], cwd=directory, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "run").mkdir()
        make(directory / "run")
        rounds = [(cpu_seconds(directory, "text"), cpu_seconds(directory, "html")) for _ in range(ROUNDS)]
        text, html = (min(times) for times in zip(*rounds, strict=True))
        size = (directory / "report.html").stat().st_size
        print(f"{CHECKPOINTS} checkpoints, {CHECKPOINTS * EVERY:,} steps: text {text:.1f} s, HTML {html:.1f} s of CPU")
        print(f"HTML / text {html / text:.2f}; the page has {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
