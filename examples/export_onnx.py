"""Export a folded network to ONNX with a dynamic batch, and compare ONNX Runtime's answer with the model's."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import hrnet_fast as hf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hrnetv1_w18_pose", help="a named network; its weights are random")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 192), help="height width")
    parser.add_argument("--output", type=Path, default=Path("hrnet.onnx"))
    options = parser.parse_args()

    model = hf.create_model(options.model).eval()
    engine = hf.optimize_for_inference(model, torch.zeros(1, 3, *options.size))
    engine.export_onnx(options.output, dynamic=("batch",))
    print(f"{options.output}: {options.output.stat().st_size / 2**20:.1f} MiB")

    import onnxruntime

    session = onnxruntime.InferenceSession(options.output, providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, *options.size)
    (found,) = session.run(None, {"image": images.numpy()})
    with torch.no_grad():
        expected = model(images)
    distance = (torch.from_numpy(found) - expected).norm() / expected.norm()
    print(f"relative distance between ONNX Runtime and the model, batch 2: {distance:.1e}")
    assert distance < 1e-4


if __name__ == "__main__":
    main()
