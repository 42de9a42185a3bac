// The elementwise steps of a program: sums of resampled maps, means, and conversion to and from maps.

#pragma once

#include <cstdint>
#include <vector>

#include "../../kernels/cuda/resample.h"
#include "conv.h"

namespace hrnet_fast::cpu {

// The source rows or columns of all output rows or columns.
struct Axis {
  std::vector<int32_t> first, second;
  std::vector<float> weight;  // of the second
  Axis() = default;
  Axis(Resample mode, int64_t in, int64_t out);
};

// One summand; without axes it has the output's size.
struct SumTerm {
  Map map;
  const Axis* rows = nullptr;
  const Axis* columns = nullptr;
  bool nearest = false;
};

struct SumJob {
  const SumTerm* terms;
  int64_t count;
  Map out;
  int64_t channels;
  bool relu;
};

struct PoolJob {
  Map in, out;
  int64_t channels, size;
};

// A tensor [N, C, H, W] by its strides in elements.
enum class Scalar : int { float32, bfloat16, float16, uint8 };
struct Plane {
  void* data = nullptr;
  Scalar type = Scalar::float32;
  int64_t n = 0, c = 0, h = 0, w = 0;  // strides
};

struct ImportJob {
  Plane in;
  Map out;
  int64_t channels;
  const float* scale;  // null: identity
  const float* shift;
};

struct ExportJob {
  Map in;
  Plane out;
  int64_t channels;
};

// Rows [begin, end) of n * height output rows (an export's: of the map's rows).
void sum_rows(const SumJob& job, Element type, int64_t begin, int64_t end);
void pool_rows(const PoolJob& job, Element type, int64_t begin, int64_t end);
void import_rows(const ImportJob& job, Element type, int64_t begin, int64_t end);
void export_rows(const ExportJob& job, Element type, int64_t begin, int64_t end);

}  // namespace hrnet_fast::cpu
