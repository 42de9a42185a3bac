"""Load an mmpose checkpoint and draw the keypoints of a person on a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import hrnet_fast as hf
from hrnet_fast.demo.random_weights import random_weights
from hrnet_fast.tasks import TASKS, Options
from hrnet_fast.tasks.images import read_image

PHOTOGRAPH = Path(hf.__file__).parent / "data" / "astronaut.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, help="an mmpose file; without it, random weights (and a random pose)"
    )
    parser.add_argument("--image", type=Path, default=PHOTOGRAPH)
    parser.add_argument("--box", type=float, nargs=4, default=(40.0, 0.0, 380.0, 512.0), help="left top width height")
    parser.add_argument("--output", type=Path, default=Path("pose.png"))
    options = parser.parse_args()

    source = options.checkpoint or random_weights(hf.get_config("hrnetv1_w18_pose"), "mmpose")
    model = hf.load_checkpoint(source)
    for line in (*model.notes, *model.assumptions):
        print(line)
    image: Image.Image = read_image(options.image)
    left, top, width, height = options.box
    lowest = 0.2 if options.checkpoint else float("-inf")  # random heatmaps are not scores
    chosen = Options(boxes=((left, top, width, height),), flip=True, threshold=lowest)
    answer = TASKS["pose"].predict(model, image, chosen)
    answer.picture.save(options.output)
    print(f"{len(answer.data['people'][0]['keypoints'])} keypoints drawn in {options.output}")


if __name__ == "__main__":
    main()
