"""Loss and gradients of a model under torch's FSDP on several CPU ranks, beside those of the whole model.

torchrun --standalone --nproc-per-node=2 -m tests.train.loop.sharded rmt
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from zoo import build_model


def loss_of(model: nn.Module, tokens: Tensor, vocab_size: int) -> Tensor:
    logits, state = model(tokens[:, :32])
    more, _ = model(tokens[:, 32:-1], state)
    logits = torch.cat([logits, more], dim=1)
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def main(name: str) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    whole, sharded = (build_model(f"model={name}", "size=nano", "seed=1").double() for _ in range(2))
    tokens = torch.randint(256, (2 * ranks, 65), generator=torch.Generator().manual_seed(0))
    expected = loss_of(whole, tokens, whole.vocab_size)
    expected.backward()

    fully_shard(sharded, mesh=init_device_mesh("cpu", (ranks,)))
    assert all(isinstance(weight, DTensor) for weight in sharded.parameters())
    loss = loss_of(sharded, tokens[2 * rank : 2 * rank + 2], whole.vocab_size)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / ranks, expected.detach(), rtol=1e-10, atol=1e-10)
    compared = 0
    for (key, weight), other in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        if other.grad is None:
            assert weight.grad is None, key
            continue
        assert isinstance(weight.grad, DTensor)
        torch.testing.assert_close(weight.grad.full_tensor(), other.grad, rtol=1e-8, atol=1e-10)
        compared += 1
    assert compared > 5
    if rank == 0:
        print(f"{compared} gradients are the same")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
