"""A real `transformers.Trainer` run of a small CLIP that records itself: one argument more than without."""

import torch
from torch.utils.data import Dataset
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

import fgclip_doctor

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


class Pairs(Dataset):
    """Images that are one colour, and texts that name it."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        colour = index % 64
        image = torch.full((3, 16, 16), colour / 32 - 1) + 0.05 * torch.randn(3, 16, 16)
        return {"pixel_values": image, "input_ids": torch.tensor([98, colour, 99]), "return_loss": torch.tensor(True)}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, object]:
    batch: dict[str, object] = {
        key: torch.stack([one[key] for one in samples]) for key in ("pixel_values", "input_ids")
    }
    return batch | {"return_loss": True}


def main(directory: str = "runs/example-hf", steps: int = 40) -> None:
    config = CLIPConfig(
        text_config={**LAYERS, "vocab_size": 100, "max_position_embeddings": 8, "eos_token_id": 99, "bos_token_id": 98},
        vision_config={**LAYERS, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    arguments = TrainingArguments(
        output_dir=directory, max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=5,
        report_to=[], remove_unused_columns=False, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    recording = fgclip_doctor.DoctorCallback(f"{directory}/recording")
    Trainer(
        CLIPModel(config), arguments, train_dataset=Pairs(), data_collator=collate, callbacks=[recording]
    ).train()  # fmt: skip
    print(f"now: fgclip-doctor audit {directory} {directory}/recording")


if __name__ == "__main__":
    main()
