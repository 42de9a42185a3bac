// Strips of positions for kernels that address every third one.

#pragma once

#include "conv_pack.h"

namespace hrnet_fast::cpu {

// Order of the positions: the whole map in one sequence, halo included (see Strips); pieces of output rows; or
// all positions inside, row after row, if no group of three crosses the end of a row.
enum class Order : int { sequence, rows, threes };

class TripleStrips {
 public:
  // Offsets of positions 0, 3, 6, ... in elements from the maps' data, and one bit for each stored position.
  struct Strip {
    int64_t in[6], out[6], residual[6];
    uint32_t stored;
  };

  static bool possible(const ConvJob& job, Order order, int64_t length) {
    if (order == Order::sequence) return job.packed->shape.stride == 1;
    return order == Order::rows || (job.out.width % 3 == 0 && length % 3 == 0);
  }

  TripleStrips(const ConvJob& job, Order order, int64_t length)
      : job_(job), plain_(job, length), order_(order), length_(length) {
    if (order == Order::sequence) {
      count_ = plain_.count();
    } else if (order == Order::rows) {
      per_row_ = (job.out.width + length - 1) / length;
      count_ = job.out.n * job.out.height * per_row_;
    } else {
      count_ = (job.out.n * job.out.height * job.out.width + length - 1) / length;
    }
  }

  int64_t count() const { return count_; }

  Strip at(int64_t index) const {
    Strip strip;
    const int64_t step = job_.packed->shape.stride * job_.in.pixel;
    if (order_ == Order::threes) {
      const int64_t total = job_.out.n * job_.out.height * job_.out.width, first = index * length_;
      for (int64_t k = 0; k < length_ / 3; ++k) {
        const int64_t p = std::min(first + 3 * k, total - 3);  // positions after the end are computed but not stored
        set(strip, k, p / job_.out.width, p % job_.out.width);
      }
      strip.stored = bits(std::min(length_, total - first));
      return strip;
    }
    if (order_ == Order::rows) {
      const int64_t x = index % per_row_ * length_;
      set(strip, 0, index / per_row_, x);
      strip.stored = bits(std::min(length_, job_.out.width - x));
    } else {
      const auto plain = plain_.at(index);
      strip.in[0] = plain.in, strip.out[0] = plain.out, strip.residual[0] = plain.residual;
      strip.stored = plain.stored;
    }
    for (int64_t k = 1; k < (length_ + 2) / 3; ++k) {
      strip.in[k] = strip.in[k - 1] + 3 * step;
      strip.out[k] = strip.out[k - 1] + 3 * job_.out.pixel;
      strip.residual[k] = strip.residual[k - 1] + 3 * job_.residual.pixel;
    }
    return strip;
  }

 private:
  static uint32_t bits(int64_t count) { return static_cast<uint32_t>((uint64_t{1} << count) - 1); }

  // Places the k-th group of three at column x of output row `row` of all images.
  void set(Strip& strip, int64_t k, int64_t row, int64_t x) const {
    const int64_t image = row / job_.out.height, line = row % job_.out.height, stride = job_.packed->shape.stride;
    const Map &in = job_.in, &out = job_.out, &residual = job_.residual;
    strip.in[k] = image * in.image() + stride * (line * in.row() + x * in.pixel);
    strip.out[k] = image * out.image() + line * out.row() + x * out.pixel;
    strip.residual[k] = image * residual.image() + line * residual.row() + x * residual.pixel;
  }

  const ConvJob& job_;
  Strips plain_;
  Order order_;
  int64_t length_, per_row_ = 1, count_ = 0;
};

}  // namespace hrnet_fast::cpu
