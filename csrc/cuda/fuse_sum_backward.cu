// fuse_sum on CUDA, backward: one launch per term, and one more if an affine needs its gradient.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../../kernels/cuda/fuse_sum_backward_launch.cuh"
#include "maps.h"

namespace hrnet_fast::cuda {

namespace {

struct Term {
  at::Tensor x;      // undefined: no sums are needed
  at::Tensor scale;  // undefined: identity
  int64_t height, width;
  at::Tensor grad_x;  // undefined: not needed
  at::Tensor totals;  // [2, C], double: the gradients of shift and scale; undefined: not needed
};

template <typename T>
void queue_backward(const at::Tensor& grad, const at::Tensor& out, Term& term, Resample mode, bool relu, bool last) {
  FuseSumBackwardArguments<T> a;
  a.grad = map_of<const T>(grad, last);
  a.out = map_of<const T>(out, last);
  a.scale = values_or_null<math_t<T>>(term.scale);
  if (term.grad_x.defined()) a.grad_x = map_of<T>(term.grad_x, last);
  a.batch = out.size(0);
  a.channels = to_int(out.size(1));
  a.height = to_int(term.height);
  a.width = to_int(term.width);
  a.out_height = to_int(out.size(2));
  a.out_width = to_int(out.size(3));
  a.mode = mode;
  a.relu = relu;
  a.channels_last = last;
  at::Tensor partials;
  if (term.totals.defined()) {
    a.x = map_of<const T>(term.x, last);
    a.partials = a.totals = term.totals.mutable_data_ptr<double>();  // non-null marks sums as needed
    partials = at::empty({fuse_sum_partial_rows(a), 2 * out.size(1)}, term.totals.options());
    a.partials = partials.mutable_data_ptr<double>();
  }
  check_launch("fuse_sum", fuse_sum_backward(a, c10::cuda::getCurrentCUDAStream()), out);
}

}  // namespace

std::vector<at::Tensor> fuse_sum_backward_tensors(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                                  at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                                  at::IntArrayRef wanted) {
  const size_t n = xs.size();
  TORCH_CHECK(scales.size() == n && sizes.size() == 2 * n && wanted.size() == 2 * n && grad.sizes() == out.sizes() &&
                  grad.scalar_type() == out.scalar_type() && grad.device() == out.device(),
              "fuse_sum: the backward's arguments do not belong together");
  const c10::cuda::CUDAGuard guard(grad.device());
  const bool last = out.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  const at::Tensor own_grad = as_map(grad, last), own_out = as_map(out, last);
  std::vector<at::Tensor> results(3 * n);
  for (size_t k = 0; k < n; ++k) {
    const bool want_x = wanted[k] != 0, want_affine = wanted[n + k] != 0;
    if (!want_x && !want_affine) continue;
    const std::vector<int64_t> shape{out.size(0), out.size(1), sizes[2 * k], sizes[2 * k + 1]};
    Term term{want_affine ? as_map(xs[k], last) : at::Tensor(), present(scales[k], math_type(out.scalar_type())),
              sizes[2 * k], sizes[2 * k + 1]};
    if (want_x) term.grad_x = at::empty(shape, grad.options(), format_of(last));
    if (want_affine) term.totals = at::empty({2, out.size(1)}, grad.options().dtype(at::kDouble));
    if (out.numel() == 0 || sizes[2 * k] * sizes[2 * k + 1] == 0) {
      if (want_x) term.grad_x.zero_();
      if (want_affine) term.totals.zero_();
    } else {
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "fuse_sum_backward_cuda", [&] {
        queue_backward<Bits<scalar_t>::type>(own_grad, own_out, term, static_cast<Resample>(mode), relu, last);
      });
    }
    if (want_x) results[k] = term.grad_x;
    if (want_affine) {
      // Copies, because to() would return two views of one tensor for double.
      results[n + k] = term.totals[1].to(scales[k].scalar_type(), /*non_blocking=*/false, /*copy=*/true);
      results[2 * n + k] = term.totals[0].to(scales[k].scalar_type(), /*non_blocking=*/false, /*copy=*/true);
    }
  }
  return results;
}

}  // namespace hrnet_fast::cuda
