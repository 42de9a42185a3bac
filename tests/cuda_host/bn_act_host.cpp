// Runs the CUDA kernels of bn_act on a host: `bn_act_host CASES RESULTS`. The test that builds this states the cases.

#define HF_CUDA_SHIM "cuda_shim.h"
#include "bn_act.cuh"
#include "bn_act_backward.cuh"
#include "bn_act_statistics.cuh"
#include "cases.h"

namespace {

using cuda::math_t;

cuda::MapShape shape(Case& c) {
  cuda::MapShape s;
  s.batch = c.in.number();
  s.channels = c.in.integer();
  s.pixels = c.in.number();
  s.channels_last = c.in.number() != 0;
  return s;
}

// As large as they must be and no larger, and zero before and after each launch.
struct Counters {
  std::unique_ptr<uint32_t[]> values;
  int64_t count;
  explicit Counters(int64_t maps) : values(new uint32_t[maps * cuda::kCounters]()), count(maps * cuda::kCounters) {}
  ~Counters() {
    for (int64_t i = 0; i < count; ++i)
      if (values[i] != 0) {
        std::fprintf(stderr, "counter %lld is left at %u\n", static_cast<long long>(i), values[i]);
        std::abort();
      }
  }
};

template <typename M>
std::unique_ptr<M[]> filled(int64_t count) {
  std::unique_ptr<M[]> values(new M[count]);
  std::fill_n(values.get(), count, static_cast<M>(NAN));
  return values;
}

cuda::Parameter parameter(Case& c, std::vector<Memory>* written = nullptr) {
  cuda::Parameter p;
  const int64_t bytes = c.in.number();
  p.kind = static_cast<cuda::Kind>(c.in.number());
  p.stride = c.in.integer();
  p.data = c.in.buffer<char>(c.kept, bytes);
  if (written != nullptr) written->push_back({static_cast<const char*>(p.data), bytes});
  return p;
}

cuda::NormArguments norm(Case& c, std::vector<Memory>* written) {
  cuda::NormArguments n;
  n.begin = c.in.integer();
  n.end = c.in.integer();
  n.momentum = c.in.number<double>();
  n.eps = c.in.number<double>();
  n.weight = parameter(c);
  n.bias = parameter(c);
  n.running_mean = parameter(c, written);
  n.running_var = parameter(c, written);
  return n;
}

template <typename T>
void statistics(Case& c) {
  using M = math_t<T>;
  cuda::BnStatisticsArguments<T> a;
  a.count = c.in.integer();
  std::vector<std::unique_ptr<M[]>> results;
  std::vector<Memory> written;
  int norms = 0;
  for (int k = 0; k < a.count; ++k) {
    auto& map = a.maps[k];
    map.shape = shape(c);
    map.x = readable(c.map<T>());
    map.first_norm = norms;
    map.norms = c.in.integer();
    for (int j = 0; j < map.norms; ++j) a.norms[norms++] = norm(c, &written);
    results.push_back(filled<M>((map.norms > 0 ? 4 : 2) * map.shape.channels));
    map.result = results.back().get();
  }
  const auto partials = filled<M>(bn_statistics_partials(a));
  const Counters counters(a.count);
  a.partials = partials.get();
  a.counters = counters.values.get();
  check(cuda::bn_statistics(a, nullptr));
  for (int k = 0; k < a.count; ++k) {
    const auto& map = a.maps[k];
    const auto p = cuda::packing_of<T>(map.shape, {map.x});
    c.out.number(p.width);
    c.out.number(walk_of(map.shape, p, true).tiles);
    c.out.values(map.result, (map.norms > 0 ? 4 : 2) * map.shape.channels);
  }
  for (const Memory& memory : written) c.out.values(memory.data, memory.bytes);
}

template <typename M>
void running_affine(Case& c) {
  cuda::BnRunningAffineArguments<M> a;
  a.count = c.in.integer();
  for (int k = 0; k < a.count; ++k) {
    a.norms[k] = norm(c, nullptr);
    a.first[k] = c.in.integer();
    a.width[k] = c.in.integer();
  }
  const int64_t values = 4 * static_cast<int64_t>(a.norms[a.count - 1].end);
  const auto result = filled<M>(values);
  a.result = result.get();
  check(cuda::bn_running_affine(a, nullptr));
  c.out.values(a.result, values);
}

// The maps of one launch: as many as the case says, read one after another.
template <typename Arguments, typename Read>
std::vector<Arguments> maps_of(Case& c, const Read& read) {
  std::vector<Arguments> maps(c.in.number());
  for (Arguments& a : maps) {
    a.shape = shape(c);
    a.relu = c.in.number() != 0;
    read(a);
  }
  return maps;
}

template <typename T>
void apply(Case& c) {
  using M = math_t<T>;
  const auto maps = maps_of<cuda::BnActArguments<T>>(c, [&](auto& a) {
    a.x = readable(c.map<T>());
    a.residual = readable(c.map<T>());
    a.affine = c.channels<M>(4 * a.shape.channels);
    a.residual_affine = c.channels<M>(4 * a.shape.channels);
    a.out = c.map<T>(true);
  });
  check(cuda::bn_act_apply(maps.data(), static_cast<int>(maps.size()), nullptr));
  for (size_t k = 0; k < maps.size(); ++k) {
    const auto& a = maps[k];
    c.out.number(cuda::packing_of<T>(a.shape, {a.x, a.residual, readable(a.out)}).width);
    c.out.values(c.results[k].data, c.results[k].bytes);
  }
}

template <typename T>
void backward_sums(Case& c) {
  using M = math_t<T>;
  std::vector<std::unique_ptr<M[]>> sums, partials;
  auto maps = maps_of<cuda::BnBackwardSumsArguments<T>>(c, [&](auto& a) {
    a.grad = readable(c.map<T>());
    a.addend = readable(c.map<T>());
    a.x = readable(c.map<T>());
    a.out = readable(c.map<T>());
    a.affine = c.channels<M>(4 * a.shape.channels);
    a.kept = c.map<T>(true);
    sums.push_back(filled<M>(2 * a.shape.channels));
    partials.push_back(filled<M>(bn_backward_sums_partials(a)));
    a.sums = sums.back().get();
    a.partials = partials.back().get();
  });
  const Counters counters(static_cast<int64_t>(maps.size()));
  for (size_t k = 0; k < maps.size(); ++k) maps[k].counters = counters.values.get() + k * cuda::kCounters;
  check(cuda::bn_backward_sums(maps.data(), static_cast<int>(maps.size()), nullptr));
  for (size_t k = 0; k < maps.size(); ++k) {
    c.out.number(bn_backward_sums_packing(maps[k]).width);
    c.out.values(maps[k].sums, 2 * maps[k].shape.channels);
    c.out.values(c.results[k].data, c.results[k].bytes);
  }
}

template <typename T>
void backward_input(Case& c) {
  using M = math_t<T>;
  const auto maps = maps_of<cuda::BnBackwardInputArguments<T>>(c, [&](auto& a) {
    a.count = c.in.number<double>();
    a.grad = readable(c.map<T>());
    a.x = readable(c.map<T>());
    a.affine = c.channels<M>(4 * a.shape.channels);
    a.sums = c.channels<M>(2 * a.shape.channels);
    a.grad_x = c.map<T>(true);
  });
  check(cuda::bn_backward_input(maps.data(), static_cast<int>(maps.size()), nullptr));
  for (size_t k = 0; k < maps.size(); ++k) {
    const auto& a = maps[k];
    c.out.number(cuda::packing_of<T>(a.shape, {a.grad, a.x, readable(a.grad_x)}).width);
    c.out.values(c.results[k].data, c.results[k].bytes);
  }
}

}  // namespace

int main(int, char** arguments) {
  return run_cases(arguments, [](Case& c, int operation, auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    shim::order = static_cast<shim::Order>(c.in.number());
    if (operation == 0) return statistics<T>(c);
    if (operation == 1) return running_affine<math_t<T>>(c);
    if (operation == 2) return apply<T>(c);
    if (operation == 3) return backward_sums<T>(c);
    backward_input<T>(c);
  });
}
