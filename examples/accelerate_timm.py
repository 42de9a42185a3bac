"""Train a timm HRNet with accelerate, automatic mixed precision and gradient accumulation."""

from __future__ import annotations

import argparse

import timm
import torch
from torch.nn import functional as F

import hrnet_fast as hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hrnet_w18_small")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps")
    parser.add_argument("--accumulate", type=int, default=2, help="batches for each optimizer step")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model(options.model, pretrained=False, num_classes=10).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    hf.accelerate(model)  # before or after making the optimizer: the parameters stay
    print(str(hf.explain(model)).splitlines()[0])

    for step in range(options.steps):
        for _ in range(options.accumulate):
            # In place of a data loader: random images and labels.
            images = torch.randn(options.batch, 3, options.size, options.size, device=device)
            images = images.to(memory_format=torch.channels_last)
            labels = torch.randint(10, (options.batch,), device=device)
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images).float(), labels) / options.accumulate
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"step {step + 1}: loss {loss.item() * options.accumulate:.4f}")


if __name__ == "__main__":
    main()
