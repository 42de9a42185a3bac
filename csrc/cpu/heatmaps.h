// Heatmap targets on the CPU, for hrnet_fast/keypoints/encoding.py, which checks the arguments.

#pragma once

#include <ATen/ATen.h>

namespace hrnet_fast::cpu {

// Heatmaps [N, K, h, w] of the values table[rows[n, k, y], columns[n, k, x]]. `table` is float32 [P, Q]; `rows` int32
// [N, K, h] and `columns` int32 [N, K, w] are -1 where the heatmap is 0.
at::Tensor place_patches(const at::Tensor& table, const at::Tensor& rows, const at::Tensor& columns);

}  // namespace hrnet_fast::cpu
