// Crops of pictures on the CPU: one pass from each decoded picture to its crop, in parallel over pictures and rows.

#include "pictures.h"

#include <ATen/Parallel.h>

#include <vector>

#include "clones.h"
#include "picture_kernels.h"

namespace hrnet_fast::cpu {

namespace {

constexpr int64_t kRowsAhead = 8;  // output rows between a prefetch and its use

struct Warp {
  std::vector<Picture> pictures;
  std::vector<int32_t> across;  // [N, 2, blocks of w]
  const int32_t* down;          // [N, 2, h]
  const bool* flips;
  int64_t height, width, wide;
  uint8_t* crops;
};

HF_CLONES void warp_rows(const Warp& job, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t n = k / job.height, y = k % job.height;
    const int32_t* across = job.across.data() + n * 2 * job.wide;
    const int32_t* down = job.down + n * 2 * job.height + y;
    uint8_t* to = job.crops + (n * 3 * job.height + y) * job.width;
    const int64_t plane = job.height * job.width;
    const int64_t later = std::min(kRowsAhead, job.height - 1 - y);
    warp_row(job.pictures[n], {across,
                               across + job.wide,
                               down[0],
                               down[job.height],
                               down[later],
                               down[job.height + later],
                               job.flips[n],
                               job.width,
                               {to, to + plane, to + 2 * plane}});
  }
}

struct Resize {
  std::vector<Picture> pictures;
  const int32_t* rows;     // [N, 4, h]
  const int32_t* columns;  // [N, 4, w]
  int64_t height, width;
  uint8_t outside;
  uint8_t* parts;

  Axis axis(const int32_t* table, int64_t n, int64_t length) const {
    const int32_t* at = table + n * 4 * length;
    return {at, at + length, at + 2 * length, at + 3 * length};
  }
};

HF_CLONES void resize_rows(const Resize& job, int64_t begin, int64_t end) {
  const int64_t wide = blocks(job.width), plane = job.height * job.width;
  std::vector<int32_t> memory(2 * 3 * wide);
  int32_t* lines[2] = {memory.data(), memory.data() + 3 * wide};
  int64_t held[2] = {-1, -1}, of = -1;  // which rows of which picture the lines hold
  for (int64_t k = begin; k < end; ++k) {
    const int64_t n = k / job.height, y = k % job.height;
    const Axis rows = job.axis(job.rows, n, job.height), columns = job.axis(job.columns, n, job.width);
    if (n != of) held[0] = held[1] = -1;
    of = n;
    uint8_t* to = job.parts + (n * 3 * job.height + y) * job.width;
    if (!rows.inside[y]) {
      for (int c = 0; c < 3; ++c) std::memset(to + c * plane, 0, job.width);
      continue;
    }
    const int64_t wanted[2] = {rows.first[y], rows.second[y]};
    if (held[0] != wanted[0] && held[1] == wanted[0]) {
      std::swap(lines[0], lines[1]);
      std::swap(held[0], held[1]);
    }
    for (int i = 0; i < 2; ++i)
      if (held[i] != wanted[i]) {
        resize_row(job.pictures[n], wanted[i], columns, job.width, lines[i]);
        held[i] = wanted[i];
      }
    for (int c = 0; c < 3; ++c)
      join_rows(lines[0] + c * wide, lines[1] + c * wide, rows.share[y], columns.inside, job.width, to + c * plane);
  }
}

HF_CLONES void pick_rows(const Resize& job, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t n = k / job.height, y = k % job.height;
    const Axis rows = job.axis(job.rows, n, job.height);
    uint8_t* to = job.parts + k * job.width;
    if (rows.inside[y])
      pick_row(job.pictures[n], rows.first[y], job.axis(job.columns, n, job.width), job.outside, job.width, to);
    else
      std::memset(to, job.outside, job.width);
  }
}

struct Normalize {
  const uint8_t* from;
  float* to;
  int64_t channels, plane;
  std::vector<float> mean, std;
};

HF_CLONES void normalize_planes(const Normalize& job, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t c = k % job.channels, at = k * job.plane;
    normalize_values(job.from + at, job.plane, job.mean[c], job.std[c], job.to + at);
  }
}

// The pictures in memory. What is not of 3 or 4 bytes a pixel, or ends before the last pixel's, is copied into `kept`.
std::vector<Picture> pictures_of(at::TensorList given, int64_t channels, std::vector<at::Tensor>& kept) {
  std::vector<Picture> pictures;
  for (const at::Tensor& one : given) {
    TORCH_CHECK(one.scalar_type() == at::kByte && one.dim() == (channels == 1 ? 2 : 3) && one.numel() > 0 &&
                    (channels == 1 || one.size(2) == channels),
                "pictures: ", one.scalar_type(), " ", one.sizes(), " for ", channels, " channels");
    const int64_t height = one.size(0), width = one.size(1), step = one.stride(1), row = one.stride(0);
    const int64_t room = static_cast<int64_t>(one.storage().nbytes()) - one.storage_offset();
    const bool packed = channels == 1 ? step == 1 : one.stride(2) == 1 && (step == 3 || step == 4);
    const bool whole = packed && row >= width * step && room >= (height - 1) * row + width * step;
    kept.push_back(whole ? one : one.contiguous());
    const uint8_t* own = kept.back().const_data_ptr<uint8_t>();
    // A contiguous tensor of one column or row may keep any stride there.
    if (whole)
      pictures.push_back({own, row, step, height, width});
    else
      pictures.push_back({own, width * channels, channels, height, width});
  }
  return pictures;
}

// Rows for each thread, so that the work outweighs the dispatch.
int64_t grain(int64_t width) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)); }

void check_table(const char* what, const at::Tensor& table, int64_t count, int64_t parts) {
  TORCH_CHECK(table.scalar_type() == at::kInt && table.is_contiguous() && table.dim() == 3 && table.size(0) == count &&
                  table.size(1) == parts,
              "pictures: ", what, " ", table.scalar_type(), " ", table.sizes(), " for ", count, " pictures");
}

// Tables come from Python; a position beside its picture would read beside its memory.
void check_positions(const Resize& job, int64_t length, const int32_t* table, bool vertical) {
  for (size_t n = 0; n < job.pictures.size(); ++n) {
    const int64_t size = vertical ? job.pictures[n].height : job.pictures[n].width;
    const int32_t* at = table + n * 4 * length;
    for (int64_t i = 0; i < 2 * length; ++i)
      TORCH_CHECK(at[i] >= 0 && at[i] < size, "pictures: position ", at[i], " in a picture of ", size);
  }
}

Resize resize_of(at::TensorList pictures, const at::Tensor& rows, const at::Tensor& columns, int64_t channels,
                 std::vector<at::Tensor>& kept, at::Tensor& parts) {
  const int64_t count = static_cast<int64_t>(pictures.size());
  check_table("rows", rows, count, 4);
  check_table("columns", columns, count, 4);
  parts = at::empty({count, channels, rows.size(2), columns.size(2)}, at::TensorOptions().dtype(at::kByte));
  Resize job{pictures_of(pictures, channels, kept),
             rows.const_data_ptr<int32_t>(),
             columns.const_data_ptr<int32_t>(),
             rows.size(2),
             columns.size(2),
             0,
             parts.mutable_data_ptr<uint8_t>()};
  check_positions(job, job.height, job.rows, true);
  check_positions(job, job.width, job.columns, false);
  return job;
}

}  // namespace

at::Tensor warp_pictures(at::TensorList pictures, const at::Tensor& across, const at::Tensor& down,
                         const at::Tensor& flips) {
  const int64_t count = static_cast<int64_t>(pictures.size());
  check_table("across", across, count, 2);
  check_table("down", down, count, 2);
  TORCH_CHECK(flips.scalar_type() == at::kBool && flips.is_contiguous() && flips.numel() == count,
              "pictures: flips of ", flips.sizes(), " for ", count, " pictures");
  const int64_t width = across.size(2), wide = blocks(width);
  at::Tensor crops = at::empty({count, 3, down.size(2), width}, at::TensorOptions().dtype(at::kByte));
  std::vector<at::Tensor> kept;
  Warp job{pictures_of(pictures, 3, kept),
           {},
           down.const_data_ptr<int32_t>(),
           flips.const_data_ptr<bool>(),
           down.size(2),
           width,
           wide,
           crops.mutable_data_ptr<uint8_t>()};
  job.across.resize(count * 2 * wide);
  const int32_t* from = across.const_data_ptr<int32_t>();
  for (int64_t k = 0; k < 2 * count && width > 0; ++k)  // the last block is filled with the last position
    for (int64_t i = 0; i < wide; ++i) job.across[k * wide + i] = from[k * width + std::min(i, width - 1)];
  at::parallel_for(0, count * job.height, grain(width), [&](int64_t b, int64_t e) { warp_rows(job, b, e); });
  return crops;
}

at::Tensor resize_pictures(at::TensorList pictures, const at::Tensor& rows, const at::Tensor& columns) {
  at::Tensor parts;
  std::vector<at::Tensor> kept;
  const Resize job = resize_of(pictures, rows, columns, 3, kept, parts);
  const int64_t work = parts.size(0) * job.height;
  at::parallel_for(0, work, grain(job.width), [&](int64_t b, int64_t e) { resize_rows(job, b, e); });
  return parts;
}

at::Tensor pick_classes(at::TensorList maps, const at::Tensor& rows, const at::Tensor& columns, int64_t outside) {
  at::Tensor parts;
  std::vector<at::Tensor> kept;
  Resize job = resize_of(maps, rows, columns, 1, kept, parts);
  job.outside = static_cast<uint8_t>(outside);
  const int64_t work = parts.size(0) * job.height;
  at::parallel_for(0, work, grain(job.width), [&](int64_t b, int64_t e) { pick_rows(job, b, e); });
  return parts;
}

at::Tensor normalize_pictures(const at::Tensor& pictures, at::ArrayRef<double> mean, at::ArrayRef<double> std) {
  TORCH_CHECK(pictures.scalar_type() == at::kByte && pictures.dim() == 4, "pictures: ", pictures.sizes());
  const at::Tensor x = pictures.contiguous();
  const int64_t channels = x.size(1), plane = x.size(2) * x.size(3);
  TORCH_CHECK(static_cast<int64_t>(mean.size()) == channels && std.size() == mean.size(), "pictures: ", mean.size(),
              " means for ", channels, " channels");
  at::Tensor made = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  const Normalize job{x.const_data_ptr<uint8_t>(), made.mutable_data_ptr<float>(), channels, plane,
                      {mean.begin(), mean.end()},  {std.begin(), std.end()}};
  at::parallel_for(0, x.size(0) * channels, grain(plane), [&](int64_t b, int64_t e) { normalize_planes(job, b, e); });
  return made;
}

}  // namespace hrnet_fast::cpu
