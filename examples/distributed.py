"""Train in several processes with synchronised normalisation: torchrun --nproc-per-node 2 examples/distributed.py"""

from __future__ import annotations

import argparse

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import hrnet_fast as hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hrnetv1_w18_pose")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 192), help="height width")
    parser.add_argument("--batch", type=int, default=8, help="images of each process")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    rank = distributed.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")

    torch.manual_seed(0)  # the same weights in all processes
    # PyTorch supports SyncBatchNorm on GPUs only. The network is accelerated from the start.
    norm = "syncbn" if on_gpu else "bn"
    model: nn.Module = hf.create_model(options.model, norm_kind=norm).to(device)
    parallel = DistributedDataParallel(model, device_ids=[device.index] if on_gpu else None)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-3)

    torch.manual_seed(1 + rank)  # different images in each process
    for step in range(options.steps):
        images = torch.randn(options.batch, 3, *options.size, device=device)
        loss = parallel(images).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step + 1}: loss {loss.item():.6f}")

    weight = next(model.parameters()).detach()
    others = [torch.empty_like(weight) for _ in range(distributed.get_world_size())]
    distributed.all_gather(others, weight)
    assert all(torch.equal(weight, other) for other in others)
    distributed.destroy_process_group()
    if rank == 0:
        print("all processes have the same weights")


if __name__ == "__main__":
    main()
