// Crops of pictures on the CPU, for hrnet_fast/datasets/image_warps.py and colors.py, which check the arguments.

#pragma once

#include <ATen/ATen.h>

namespace hrnet_fast::cpu {

// Warped pictures, uint8 [N, 3, h, w]. `pictures` are uint8 [H, W, 3]; `across` int32 [N, 2, w] and `down`
// int32 [N, 2, h] add up to the positions (x, y) of each output pixel, in 1/1024 pixel; `flips` bool [N] mirrors the
// pictures before.
at::Tensor warp_pictures(at::TensorList pictures, const at::Tensor& across, const at::Tensor& down,
                         const at::Tensor& flips);

// Parts of resized pictures, uint8 [N, 3, h, w]. `rows` int32 [N, 4, h] and `columns` int32 [N, 4, w] hold the two
// pixels of each output pixel, the second one's share in 1/2048, and whether it is inside of the picture.
at::Tensor resize_pictures(at::TensorList pictures, const at::Tensor& rows, const at::Tensor& columns);

// Parts of maps of classes, uint8 [N, 1, h, w], by the first pixels of such tables; `outside` is around them.
at::Tensor pick_classes(at::TensorList maps, const at::Tensor& rows, const at::Tensor& columns, int64_t outside);

// (x / 255 - mean) / std of uint8 [N, C, H, W], float32.
at::Tensor normalize_pictures(const at::Tensor& pictures, at::ArrayRef<double> mean, at::ArrayRef<double> std);

}  // namespace hrnet_fast::cpu
