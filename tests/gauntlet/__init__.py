"""The gauntlet: planted faults that have to be named, and sound runs on which nothing may fire."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
