// Runs the CUDA kernels of fuse_sum on a host: `fuse_sum_host CASES RESULTS`. The test that builds this states the
// format: 64-bit numbers and the bytes of buffers, in the order in which they are read below.

#define HF_CUDA_SHIM "cuda_shim.h"
#include "cases.h"
#include "fuse_sum.cuh"
#include "fuse_sum_backward_launch.cuh"

namespace {

template <typename A>
void common(Case& c, A& a) {
  a.mode = static_cast<hrnet_fast::Resample>(c.in.number());
  a.relu = c.in.number() != 0;
  a.channels_last = c.in.number() != 0;
  a.batch = c.in.number();
  a.channels = c.in.integer();
  a.height = c.in.integer();
  a.width = c.in.integer();
}

template <typename T>
void forward(Case& c) {
  cuda::FuseSumArguments<T> a;
  common(c, a);
  a.count = c.in.integer();
  for (int k = 0; k < a.count; ++k) {
    auto& term = a.terms[k];
    term.height = c.in.integer();
    term.width = c.in.integer();
    term.x = readable(c.map<T>());
    term.scale = c.channels<cuda::math_t<T>>(a.channels);
    term.shift = c.channels<cuda::math_t<T>>(a.channels);
  }
  a.out = c.map<T>(true);
  check(cuda::fuse_sum_forward(a, nullptr));
  c.out.number(fuse_sum_width(a));
  c.out.values(c.results.back().data, c.results.back().bytes);
}

template <typename T>
void backward(Case& c) {
  cuda::FuseSumBackwardArguments<T> a;
  common(c, a);
  a.out_height = c.in.integer();
  a.out_width = c.in.integer();
  a.grad = readable(c.map<T>());
  a.out = readable(c.map<T>());
  a.x = readable(c.map<T>());
  a.scale = c.channels<cuda::math_t<T>>(a.channels);
  const bool sums = c.in.number() != 0;
  a.grad_x = c.map<T>(true);
  // As large as they must be and no larger.
  double mark = 0;
  if (sums) a.partials = &mark;
  std::unique_ptr<double[]> partials(new double[sums ? fuse_sum_partial_rows(a) * 2 * a.channels : 1]);
  std::unique_ptr<double[]> totals(new double[2 * a.channels]);
  if (sums) a.partials = partials.get();
  a.totals = totals.get();
  check(cuda::fuse_sum_backward(a, nullptr));
  c.out.number(fuse_sum_backward_width(a));
  c.out.number(fuse_sum_spread(a, fuse_sum_backward_width(a)).split);
  c.out.values(c.results.back().data, c.results.back().bytes);
  if (sums) c.out.values(a.totals, 2 * a.channels);
}

}  // namespace

int main(int, char** arguments) {
  return run_cases(arguments, [](Case& c, int is_forward, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    is_forward != 0 ? forward<T>(c) : backward<T>(c);
  });
}
