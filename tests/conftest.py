"""Shared by all tests."""

import torch

# The tensors here are tiny: threads would only wait for one another, most of all on a machine that is shared.
torch.set_num_threads(1)
