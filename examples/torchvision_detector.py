"""Train torchvision's Faster R-CNN on HRNetV2p, and detect with the backbone in an inference engine."""

from __future__ import annotations

import argparse

import torch
from torchvision.models.detection import FasterRCNN

import hrnet_fast as hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hrnetv2p_w18_det", help="a named network with a pyramid")
    parser.add_argument("--size", type=int, default=320, help="of the short side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = hf.create_model(options.model)  # accelerated from the start
    model = FasterRCNN(
        network.as_torchvision_backbone(), num_classes=3, min_size=options.size, max_size=2 * options.size
    ).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)

    # In place of a data loader: one random image after another, with one object of class 1.
    size = options.size
    box = torch.tensor([[0.2, 0.2, 0.7, 0.8]], device=device) * size
    for step in range(options.steps):
        images = [torch.rand(3, size, size, device=device) for _ in range(options.batch)]
        targets = [{"boxes": box, "labels": torch.tensor([1], device=device)} for _ in images]
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.4f}")

    model.eval()
    hf.optimize_for_inference(model, torch.zeros(1, 3, size, size, device=device), inplace=True)
    print(hf.explain(model))
    with torch.no_grad():
        (found,) = model([torch.rand(3, size, size, device=device)])
    print(f"{len(found['boxes'])} boxes, scores, labels")


if __name__ == "__main__":
    main()
