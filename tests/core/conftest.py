import torch

torch.set_num_threads(1)  # models this small gain nothing by a second one, and lose much on a busy machine
