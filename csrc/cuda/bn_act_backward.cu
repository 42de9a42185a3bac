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

std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& given_grad, const OptionalTensor& given_addend,
                                                 const at::Tensor& given_x, const at::Tensor& given_affine,
                                                 const OptionalTensor& given_out, bool relu, bool keep) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const Layout layout(given_x);
  const at::Tensor x = layout.laid_out("backward_sums", given_x), grad = layout.laid_out("backward_sums", given_grad);
  const at::Tensor addend = layout.laid_out("backward_sums", given_addend);
  const at::Tensor out = layout.laid_out("backward_sums", given_out);
  const at::Tensor affine = layout.table("backward_sums", given_affine, 4);
  at::Tensor kept = keep ? at::empty(layout.sizes, given_x.options(), layout.format)
                         : at::empty({0}, given_x.options().memory_format({}));
  at::Tensor sums = at::empty({2, layout.shape.channels}, affine.options());
  if (x.numel() == 0) return {sums.zero_(), kept};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, layout.type, "bn_backward_sums_cuda", [&] {
    using T = Bits<scalar_t>::type;
    BnBackwardSumsArguments<T> a;
    a.shape = layout.shape;
    a.grad = layout.map<const T>(grad);
    a.x = layout.map<const T>(x);
    a.addend = layout.map<const T>(addend);
    a.out = layout.map<const T>(out);
    if (keep) a.kept = layout.map<T>(kept);
    a.affine = affine.const_data_ptr<math_t<T>>();
    a.sums = sums.mutable_data_ptr<math_t<T>>();
    a.relu = relu;
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const at::Tensor partials = at::empty({bn_backward_sums_partials(a)}, affine.options());
    a.partials = partials.mutable_data_ptr<math_t<T>>();
    a.counters = counters_of(stream);
    check_launch("backward_sums", bn_backward_sums(a, stream), x);
  });
  return {sums, kept};
}

at::Tensor backward_input(const at::Tensor& given_grad, const at::Tensor& given_x, const at::Tensor& given_affine,
                          const at::Tensor& given_sums, double count, bool relu) {
  const c10::cuda::CUDAGuard guard(given_x.device());
  const Layout layout(given_x);
  const at::Tensor x = layout.laid_out("backward_input", given_x), grad = layout.laid_out("backward_input", given_grad);
  const at::Tensor affine = layout.table("backward_input", given_affine, 4);
  // Given statistics are constants: there are no sums then, and the tensor may be empty.
  const bool batch = std::isfinite(count);
  const at::Tensor sums = batch ? layout.table("backward_input", given_sums, 2) : at::Tensor();
  at::Tensor grad_x = at::empty(layout.sizes, given_x.options(), layout.format);
  if (x.numel() == 0) return grad_x;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, layout.type, "bn_backward_input_cuda", [&] {
    using T = Bits<scalar_t>::type;
    BnBackwardInputArguments<T> a;
    a.shape = layout.shape;
    a.grad = layout.map<const T>(grad);
    a.x = layout.map<const T>(x);
    a.grad_x = layout.map<T>(grad_x);
    a.affine = affine.const_data_ptr<math_t<T>>();
    a.sums = values_or_null<math_t<T>>(sums);
    a.count = count;
    a.relu = relu;
    check_launch("backward_input", bn_backward_input(a, c10::cuda::getCurrentCUDAStream()), x);
  });
  return grad_x;
}

}  // namespace hrnet_fast::cuda
