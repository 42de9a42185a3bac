// A network as one program: steps over maps in an arena, in waves whose steps do not depend on each other.
//
// Built once per input shape by the planner in Python (hrnet_fast/inference/execution/cpu_executor.py), run many times,
// by several threads at once if each brings its own arena.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "conv.h"
#include "program_steps.h"

namespace hrnet_fast::cpu {

using Weights = std::shared_ptr<PackedConv>;

// A slice of a buffer's channels from `offset`.
struct Place {
  int64_t buffer, offset;
};

struct TermPlace {
  Place place;
  std::string mode;  // "identity", "nearest", "bilinear"
  bool align_corners;
};

// A tensor of the caller: address, type, shape and strides.
struct Given {
  Plane plane;
  int64_t n, channels, height, width;
};

struct StepTime {
  int64_t step;
  double seconds;
};

class Program {
 public:
  explicit Program(Element type) : type_(type) {}

  int64_t buffer(int64_t offset_bytes, int64_t n, int64_t height, int64_t width, int64_t channels);
  void input(int64_t wave, Place out, int64_t index, int64_t channels, std::vector<float> scale,
             std::vector<float> shift);
  void conv(int64_t wave, Weights weights, const ConvShape& shape, Place in, Place out, const Place* residual);
  void sum(int64_t wave, const std::vector<TermPlace>& terms, Place out, int64_t channels, bool relu);
  void avg_pool(int64_t wave, Place in, Place out, int64_t channels, int64_t size);
  void output(int64_t wave, Place in, int64_t channels, int64_t index);
  // Ends the construction. Throws std::invalid_argument for inconsistent steps, as the other functions do.
  void finish(int64_t arena_bytes);

  // `arena` is 64-byte aligned and has the size given to `finish`. Throws before any step runs.
  void run(const std::vector<Given>& inputs, const std::vector<Given>& outputs, char* arena, int threads) const;
  std::vector<StepTime> profile(const std::vector<Given>& inputs, const std::vector<Given>& outputs, char* arena,
                                int threads) const;

  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t steps() const { return static_cast<int64_t>(steps_.size()); }
  int64_t waves() const { return static_cast<int64_t>(waves_.size()); }

 private:
  enum class Kind { input, conv, sum, pool, output };

  struct Buffer {
    int64_t offset, n, height, width, channels;
  };

  struct Step {
    Kind kind;
    int64_t wave;
    Place in{-1, 0}, out{-1, 0}, residual{-1, 0};
    int64_t channels = 0, index = 0, size = 1, items = 0;
    bool relu = false;
    Weights weights;
    std::vector<float> scale, shift;
    std::vector<TermPlace> terms;
    std::vector<std::shared_ptr<Axis>> rows, columns;
  };

  // A step with the addresses of one call.
  struct Job {
    ConvJob conv;
    SumJob sum;
    PoolJob pool;
    ImportJob import_;
    ExportJob export_;
    std::vector<SumTerm> terms;
  };

  void check_place(Place place, int64_t channels, const char* what) const;
  void check_apart(Place in, int64_t in_channels, Place out, int64_t channels, const char* what) const;
  void check_over(Place in, Place out, int64_t channels, const char* what) const;
  void add(Step step);
  Map map(Place place, char* arena) const;
  int64_t rows_per_item(const Step& step) const;
  void check_given(const std::vector<Given>& inputs, const std::vector<Given>& outputs) const;
  std::vector<Job> resolve(const std::vector<Given>& inputs, const std::vector<Given>& outputs, char* arena) const;
  void run_item(const Step& step, const Job& job, int64_t item) const;

  Element type_;
  bool finished_ = false;
  int64_t arena_bytes_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<Step> steps_;
  std::vector<std::vector<int64_t>> waves_;  // steps of each wave
  std::vector<int64_t> wave_items_;
};

// Bytes of a buffer in the arena, a multiple of 64.
int64_t map_bytes(Element type, int64_t n, int64_t height, int64_t width, int64_t channels);

}  // namespace hrnet_fast::cpu
