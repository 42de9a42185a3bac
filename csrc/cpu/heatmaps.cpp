// Heatmap targets on the CPU: one table of patch values, placed in every heatmap.

#include "heatmaps.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace hrnet_fast::cpu {

at::Tensor place_patches(const at::Tensor& table, const at::Tensor& rows, const at::Tensor& columns) {
  TORCH_CHECK(table.scalar_type() == at::kFloat && table.is_contiguous() && table.dim() == 2, "heatmaps: a table of ",
              table.sizes());
  TORCH_CHECK(rows.scalar_type() == at::kInt && rows.is_contiguous() && rows.dim() == 3 &&
                  columns.scalar_type() == at::kInt && columns.is_contiguous() && columns.dim() == 3 &&
                  rows.size(0) == columns.size(0) && rows.size(1) == columns.size(1),
              "heatmaps: rows ", rows.sizes(), " and columns ", columns.sizes());
  const int64_t high = table.size(0), wide = table.size(1), height = rows.size(2), width = columns.size(2);
  at::Tensor maps = at::zeros({rows.size(0), rows.size(1), height, width}, table.options());
  const float* values = table.const_data_ptr<float>();
  const int32_t* all_rows = rows.const_data_ptr<int32_t>();
  const int32_t* all_columns = columns.const_data_ptr<int32_t>();
  float* to = maps.mutable_data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, height * width));
  at::parallel_for(0, rows.size(0) * rows.size(1), grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int32_t* column = all_columns + k * width;
      for (int64_t y = 0; y < height; ++y) {
        const int32_t row = all_rows[k * height + y];
        if (row < 0) continue;
        TORCH_CHECK(row < high, "heatmaps: row ", row, " of a table of ", high);
        float* map = to + (k * height + y) * width;
        for (int64_t x = 0; x < width; ++x)
          if (column[x] >= 0 && column[x] < wide) map[x] = values[row * wide + column[x]];
      }
    }
  });
  return maps;
}

}  // namespace hrnet_fast::cpu
