// Runs the CUDA kernels of fuse_sum on a host: `fuse_sum_host CASES RESULTS`. The test that builds this states the
// format: 64-bit numbers and the bytes of buffers, in the order in which they are read below.

#define HF_CUDA_SHIM "cuda_shim.h"
#include <fstream>
#include <string>

#include "fuse_sum.cuh"
#include "fuse_sum_backward_launch.cuh"

namespace cuda = hrnet_fast::cuda;

namespace {

struct Reader {
  std::ifstream file;
  int64_t number() {
    int64_t value = 0;
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  // Each buffer is an allocation of its own, so that a sanitizer sees every step outside of it.
  template <typename T>
  T* buffer(std::vector<std::unique_ptr<char[]>>& kept, int64_t bytes) {
    if (bytes == 0) return nullptr;
    kept.emplace_back(new char[bytes]);
    file.read(kept.back().get(), bytes);
    return reinterpret_cast<T*>(kept.back().get());
  }
};

struct Writer {
  std::ofstream file;
  void number(int64_t value) { file.write(reinterpret_cast<const char*>(&value), sizeof value); }
};

struct Case {
  Reader& in;
  Writer& out;
  std::vector<std::unique_ptr<char[]>> kept;
  const char* result = nullptr;
  int64_t result_bytes = 0;

  template <typename T>
  cuda::Map<T> map(bool is_result = false) {
    const int64_t bytes = in.number(), offset = in.number(), image_step = in.number(), step = in.number();
    T* data = in.buffer<T>(kept, bytes);
    if (is_result) result = reinterpret_cast<const char*>(data), result_bytes = bytes;
    return {data == nullptr ? nullptr : data + offset, image_step, step};
  }
  template <typename M>
  M* channels(int64_t count) {
    return in.number() != 0 ? in.buffer<M>(kept, count * static_cast<int64_t>(sizeof(M))) : nullptr;
  }
  template <typename A>
  void common(A& a) {
    a.mode = static_cast<hrnet_fast::Resample>(in.number());
    a.relu = in.number() != 0;
    a.channels_last = in.number() != 0;
    a.batch = in.number();
    a.channels = static_cast<int>(in.number());
    a.height = static_cast<int>(in.number());
    a.width = static_cast<int>(in.number());
  }
};

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "launch refused\n");
  std::exit(3);
}

template <typename T>
void forward(Case& c) {
  cuda::FuseSumArguments<T> a;
  c.common(a);
  a.count = static_cast<int>(c.in.number());
  for (int k = 0; k < a.count; ++k) {
    auto& term = a.terms[k];
    term.height = static_cast<int>(c.in.number());
    term.width = static_cast<int>(c.in.number());
    const auto x = c.map<T>();
    term.x = {x.data, x.image_step, x.step};
    term.scale = c.channels<cuda::math_t<T>>(a.channels);
    term.shift = c.channels<cuda::math_t<T>>(a.channels);
  }
  a.out = c.map<T>(true);
  check(cuda::fuse_sum_forward(a, nullptr));
  c.out.number(fuse_sum_width(a));
  c.out.file.write(c.result, c.result_bytes);
}

template <typename T>
void backward(Case& c) {
  cuda::FuseSumBackwardArguments<T> a;
  c.common(a);
  a.out_height = static_cast<int>(c.in.number());
  a.out_width = static_cast<int>(c.in.number());
  const auto constant = [](const cuda::Map<T>& m) { return cuda::Map<const T>{m.data, m.image_step, m.step}; };
  a.grad = constant(c.map<T>());
  a.out = constant(c.map<T>());
  a.x = constant(c.map<T>());
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
  c.out.file.write(c.result, c.result_bytes);
  if (sums) c.out.file.write(reinterpret_cast<const char*>(a.totals), 2 * a.channels * sizeof(double));
}

template <typename T>
void run(Case& c, bool is_forward) {
  is_forward ? forward<T>(c) : backward<T>(c);
}

}  // namespace

int main(int, char** arguments) {
  Reader in{std::ifstream(arguments[1], std::ios::binary)};
  Writer out{std::ofstream(arguments[2], std::ios::binary)};
  const int64_t count = in.number();
  for (int64_t i = 0; i < count; ++i) {
    Case c{in, out, {}};
    const bool is_forward = in.number() != 0;
    switch (in.number()) {
      case 0:
        run<double>(c, is_forward);
        break;
      case 1:
        run<float>(c, is_forward);
        break;
      case 2:
        run<__nv_bfloat16>(c, is_forward);
        break;
      default:
        run<__half>(c, is_forward);
    }
    if (!in.file || !out.file) return 4;
  }
  std::printf("%lld cases, %ld barriers\n", static_cast<long long>(count), shim::barriers);
  return 0;
}
