// bn_act on CUDA, backward: the masked gradient and its two sums in one launch, the input's gradient in another.

#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>

#include "../../kernels/cuda/bn_act.cuh"
#include "../../kernels/cuda/bn_act_backward.cuh"
#include "bn_act.h"
#include "counters.h"

namespace hrnet_fast::cuda {

namespace {

struct Summed {
  Layout layout;
  at::Tensor grad, x, addend, out, affine, kept, sums;
  bool relu;
};

struct Differentiated {
  Layout layout;
  at::Tensor grad, x, affine, sums, grad_x;
  double count;
  bool relu;
};

}  // namespace

std::vector<BackwardSums> backward_sums(const std::vector<BackwardSumsMap>& maps) {
  constexpr auto kName = "backward_sums";
  std::vector<BackwardSums> results;
  if (maps.empty()) return results;
  const c10::cuda::CUDAGuard guard(maps[0].x.device());
  std::vector<Summed> summed;
  for (const BackwardSumsMap& map : maps) {
    const Layout layout(map.x);
    const at::Tensor affine = layout.table(kName, map.affine, 4);
    const at::Tensor kept = map.keep ? new_map(map.x, layout.format) : at::Tensor();
    results.push_back({new_values({2, layout.shape.channels}, affine.scalar_type(), affine.device()), kept});
    if (map.x.numel() == 0) {
      results.back().sums.zero_();
      continue;
    }
    summed.push_back({layout, layout.laid_out(kName, map.grad), layout.laid_out(kName, map.x),
                      layout.laid_out(kName, map.addend), layout.laid_out(kName, map.out), affine, kept,
                      results.back().sums, map.relu});
  }
  in_launches(summed, [](const Summed* own, int count) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, own->layout.type, "bn_backward_sums_cuda", [&] {
      using T = Bits<scalar_t>::type;
      BnBackwardSumsArguments<T> a[kMaxMaps];
      int64_t partials[kMaxMaps], all = 0;
      for (int k = 0; k < count; ++k) {
        const Summed& map = own[k];
        a[k].shape = map.layout.shape;
        a[k].grad = map.layout.map<const T>(map.grad);
        a[k].x = map.layout.map<const T>(map.x);
        a[k].addend = map.layout.map<const T>(map.addend);
        a[k].out = map.layout.map<const T>(map.out);
        a[k].kept = map.layout.map<T>(map.kept);
        a[k].affine = map.affine.const_data_ptr<math_t<T>>();
        a[k].sums = map.sums.mutable_data_ptr<math_t<T>>();
        a[k].relu = map.relu;
        partials[k] = all;
        all += bn_backward_sums_partials(a[k]);
      }
      const auto stream = c10::cuda::getCurrentCUDAStream();
      const at::Tensor memory = new_values({all}, own->affine.scalar_type(), own->affine.device());
      uint32_t* const counters = counters_of(stream);
      for (int k = 0; k < count; ++k) {
        a[k].partials = memory.mutable_data_ptr<math_t<T>>() + partials[k];
        a[k].counters = counters + k * kCounters;
      }
      check_launch(kName, bn_backward_sums(a, count, stream), own->x);
    });
  });
  return results;
}

std::vector<at::Tensor> backward_input(const std::vector<BackwardInputMap>& maps) {
  constexpr auto kName = "backward_input";
  std::vector<at::Tensor> results;
  if (maps.empty()) return results;
  const c10::cuda::CUDAGuard guard(maps[0].x.device());
  std::vector<Differentiated> all;
  for (const BackwardInputMap& map : maps) {
    const Layout layout(map.x);
    results.push_back(new_map(map.x, layout.format));
    if (map.x.numel() == 0) continue;
    // Given statistics are constants: there are no sums then, and the tensor may be empty.
    const bool batch = std::isfinite(map.count);
    all.push_back({layout, layout.laid_out(kName, map.grad), layout.laid_out(kName, map.x),
                   layout.table(kName, map.affine, 4), batch ? layout.table(kName, map.sums, 2) : at::Tensor(),
                   results.back(), map.count, map.relu});
  }
  in_launches(all, [](const Differentiated* own, int count) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, own->layout.type, "bn_backward_input_cuda", [&] {
      using T = Bits<scalar_t>::type;
      BnBackwardInputArguments<T> a[kMaxMaps];
      for (int k = 0; k < count; ++k) {
        const Differentiated& map = own[k];
        a[k].shape = map.layout.shape;
        a[k].grad = map.layout.map<const T>(map.grad);
        a[k].x = map.layout.map<const T>(map.x);
        a[k].grad_x = map.layout.map<T>(map.grad_x);
        a[k].affine = map.affine.const_data_ptr<math_t<T>>();
        a[k].sums = values_or_null<math_t<T>>(map.sums);
        a[k].count = map.count;
        a[k].relu = map.relu;
      }
      check_launch(kName, bn_backward_input(a, count, c10::cuda::getCurrentCUDAStream()), own->x);
    });
  });
  return results;
}

}  // namespace hrnet_fast::cuda
