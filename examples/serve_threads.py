"""Serve one engine from several threads: uint8 images in, class indices out."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

import hrnet_fast as hf

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hrnet_w18_small", help="a named network; its weights are random")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()

    model = hf.create_model(options.model).eval()
    example = torch.zeros(
        1, options.size, options.size, 3, dtype=torch.uint8
    )  # [N, H, W, C], the layout of decoded images
    engine = hf.optimize_for_inference(model, example, normalize=(MEAN, STD))
    print(engine.explain())

    def answer(request: int) -> int:
        generator = torch.Generator().manual_seed(request)
        image = torch.randint(256, example.shape, dtype=torch.uint8, generator=generator)
        logits: Tensor = engine(image)
        return int(logits.argmax())

    with ThreadPoolExecutor(options.threads) as threads:
        classes = list(threads.map(answer, range(options.requests)))
    assert classes == [answer(request) for request in range(options.requests)]  # results do not depend on the threads
    print(f"{len(classes)} requests answered by {options.threads} threads: {classes}")


if __name__ == "__main__":
    main()
