// What forward and backward of bn_act share on CUDA: the layout that a call works in, and its checks.

#pragma once

#include <ATen/cuda/EmptyTensor.h>

#include <vector>

#include "../../kernels/cuda/bn_act_walk.cuh"
#include "maps.h"

namespace hrnet_fast::cuda {

// New memory on the device of `like`, without the dispatcher.
inline at::Tensor new_map(const at::Tensor& like, at::MemoryFormat format) {
  return at::detail::empty_cuda(like.sizes(), like.scalar_type(), like.device(), format);
}
inline at::Tensor new_values(c10::IntArrayRef sizes, at::ScalarType type, c10::Device device) {
  return at::detail::empty_cuda(sizes, type, device, std::nullopt);
}

struct Layout {
  MapShape shape;
  at::MemoryFormat format;  // of results
  c10::IntArrayRef sizes;
  at::ScalarType type;
  c10::Device device;

  explicit Layout(const at::Tensor& x)
      : format(x.suggest_memory_format()), sizes(x.sizes()), type(x.scalar_type()), device(x.device()) {
    TORCH_CHECK(x.dim() == 4, "bn_act: maps are [N, C, H, W]; one of shape ", x.sizes(), " is given");
    shape.batch = x.size(0);
    shape.channels = to_int(x.size(1));
    shape.pixels = x.size(2) * x.size(3);
    // With one pixel per image both layouts are the same memory; walked channels-last, neighbours are neighbours.
    shape.channels_last = format == at::MemoryFormat::ChannelsLast || shape.pixels == 1;
  }

  // A tensor as the kernels walk it, copied only where it lies otherwise: channels-last images follow one another.
  at::Tensor laid_out(const char* name, const at::Tensor& t) const {
    TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == type && t.device() == device, name, ": a map of ", t.sizes(),
                ", ", t.scalar_type(), " on ", t.device(), " goes with one of ", sizes, ", ", type, " on ", device);
    const at::Tensor map = as_map(t, shape.channels_last);
    const bool close = !shape.channels_last || shape.batch == 1 || map.stride(0) == shape.pixels * step_of(map, true);
    return close ? map : map.contiguous(format_of(true));
  }
  at::Tensor laid_out(const char* name, const std::optional<at::Tensor>& t) const {
    return t ? laid_out(name, *t) : at::Tensor();
  }

  // A table [rows, C] of the maths' type.
  at::Tensor table(const char* name, const at::Tensor& t, int64_t rows) const {
    TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == shape.channels &&
                    t.scalar_type() == math_type(type) && t.device() == device,
                name, ": a table of ", t.sizes(), ", ", t.scalar_type(), " on ", t.device(), " where ", rows, " x ",
                shape.channels, " of ", math_type(type), " on ", device, " is needed");
    return t.contiguous();
  }

  template <typename T>
  Map<T> map(const at::Tensor& t) const {
    return t.defined() ? map_of<T>(t, shape.channels_last) : Map<T>{};
  }
};

// Calls queue(first, count) on runs of maps of one type, as many as a launch takes. `maps` have their layout.
template <typename Laid, typename Queue>
void in_launches(const std::vector<Laid>& maps, const Queue& queue) {
  for (size_t first = 0, end; first < maps.size(); first = end) {
    end = first + 1;
    while (end < maps.size() && end - first < kMaxMaps && maps[end].layout.type == maps[first].layout.type) ++end;
    queue(&maps[first], static_cast<int>(end - first));
  }
}

}  // namespace hrnet_fast::cuda
