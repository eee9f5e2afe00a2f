"""The guard's tests use one thread: their models are tiny, and several processes share the machine."""

import torch

torch.set_num_threads(1)
