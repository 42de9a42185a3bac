// bn_act on CUDA, forward: statistics, affines and running statistics in one launch, and their application in another.

#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../../kernels/cuda/bn_act.cuh"
#include "../../kernels/cuda/bn_act_statistics.cuh"
#include "bn_act.h"
#include "counters.h"

namespace hrnet_fast::cuda {

namespace {

Kind kind_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Kind::kFloat;
    case at::kDouble:
      return Kind::kDouble;
    case at::kHalf:
      return Kind::kHalf;
    case at::kBFloat16:
      return Kind::kBFloat16;
    default:
      TORCH_CHECK(false, "bn_act: a parameter of ", type, "; float64, float32, bfloat16 and float16 are accepted");
  }
}

// An empty or undefined tensor is an absent parameter.
Parameter parameter(const at::Tensor& t, int64_t channels, c10::Device device, bool written) {
  if (t.numel() == 0) return {};
  TORCH_CHECK(t.dim() == 1 && t.numel() == channels && t.device() == device, "normalisation of ", channels,
              " channels on ", device, " has a parameter of ", t.sizes(), " on ", t.device());
  const void* data = written ? t.mutable_data_ptr() : t.const_data_ptr();
  return {const_cast<void*>(data), to_int(t.stride(0)), kind_of(t.scalar_type())};
}

struct Norms {
  at::IntArrayRef channels;
  at::TensorList weights, biases, running_means, running_vars;
  at::ArrayRef<double> eps;
  c10::Device device;
  bool batch;  // whether the running statistics are written

  void check(const char* name) const {
    const size_t n = channels.size();
    TORCH_CHECK(weights.size() == n && biases.size() == n && running_means.size() == n && running_vars.size() == n &&
                    eps.size() == n,
                name, ": lists of parameters of different lengths");
  }
  NormArguments get(size_t j, int64_t begin) const {
    NormArguments norm;
    norm.weight = parameter(weights[j], channels[j], device, false);
    norm.bias = parameter(biases[j], channels[j], device, false);
    norm.running_mean = parameter(running_means[j], channels[j], device, batch);
    norm.running_var = parameter(running_vars[j], channels[j], device, batch);
    norm.eps = eps[j];
    norm.begin = to_int(begin);
    norm.end = to_int(begin + channels[j]);
    return norm;
  }
};

// The maps of one launch, laid out, their results and their norms.
struct Launch {
  std::vector<at::Tensor> xs, results;
  std::vector<Layout> layouts;
  std::vector<std::vector<NormArguments>> norms;
  size_t all_norms = 0;

  bool takes(const at::Tensor& x, size_t more) const {
    return xs.empty() || (xs.size() < kMaxMaps && all_norms + more <= kMaxNorms && x.scalar_type() == layouts[0].type);
  }
  void add(const at::Tensor& x, const at::Tensor& result, std::vector<NormArguments> own) {
    layouts.emplace_back(x);
    xs.push_back(layouts.back().laid_out("bn_statistics", x));
    results.push_back(result);
    all_norms += own.size();
    norms.push_back(std::move(own));
  }
  template <typename T>
  void queue() const {
    BnStatisticsArguments<T> a;
    int next = 0;
    for (size_t k = 0; k < xs.size(); ++k) {
      a.maps[k] = {layouts[k].map<const T>(xs[k]), layouts[k].shape, results[k].mutable_data_ptr<math_t<T>>(), next,
                   static_cast<int>(norms[k].size())};
      for (const NormArguments& norm : norms[k]) a.norms[next++] = norm;
    }
    a.count = static_cast<int>(xs.size());
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const at::Tensor partials = new_values({bn_statistics_partials(a)}, results[0].scalar_type(), results[0].device());
    a.partials = partials.mutable_data_ptr<math_t<T>>();
    a.counters = counters_of(stream);
    check_launch("bn_statistics", bn_statistics(a, stream), xs[0]);
  }
  void run() {
    if (!xs.empty())
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, layouts[0].type, "bn_statistics_cuda",
                                      [&] { queue<Bits<scalar_t>::type>(); });
    *this = {};
  }
};

// Tables [rows, C] of all maps in one allocation for each type. Without values there are no statistics: NaN, as the
// framework's.
std::vector<at::Tensor> tables_for(at::TensorList xs, int64_t rows) {
  std::vector<at::Tensor> tables;
  for (size_t k = 0, end; k < xs.size(); k = end) {
    const auto type = math_type(xs[k].scalar_type());
    int64_t all = 0;
    for (end = k; end < xs.size() && math_type(xs[end].scalar_type()) == type; ++end) all += rows * xs[end].size(1);
    const at::Tensor memory = new_values({all}, type, xs[k].device());
    int64_t first = 0;
    for (size_t j = k; j < end; ++j) {
      tables.push_back(part_of(memory, first, {rows, xs[j].size(1)}));
      first += rows * xs[j].size(1);
      if (xs[j].numel() == 0) tables.back().fill_(NAN);
    }
  }
  return tables;
}

}  // namespace

at::Tensor statistics(const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor result = tables_for(x, 2)[0];
  Launch launch;
  if (x.numel() > 0) launch.add(x, result, {});
  launch.run();
  return result;
}

std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps) {
  if (xs.empty()) return {};
  const Norms norms{channels, weights, biases, running_means, running_vars, eps, xs[0].device(), true};
  norms.check("batch_affine");
  TORCH_CHECK(momenta.size() == channels.size(), "batch_affine: lists of parameters of different lengths");
  const c10::cuda::CUDAGuard guard(xs[0].device());
  std::vector<at::Tensor> results = tables_for(xs, 4);
  Launch launch;
  size_t j = 0;  // the norm
  for (size_t k = 0; k < xs.size(); ++k) {
    const at::Tensor& x = xs[k];
    TORCH_CHECK(x.device() == xs[0].device(), "batch_affine: maps on ", x.device(), " and ", xs[0].device());
    std::vector<NormArguments> own;
    int64_t begin = 0;
    for (; j < channels.size() && begin < x.size(1); begin += channels[j++]) {
      own.push_back(norms.get(j, begin));
      own.back().momentum = momenta[j];
    }
    TORCH_CHECK(begin == x.size(1) && own.size() <= kMaxNorms, "batch_affine: ", own.size(), " normalisations of ",
                begin, " channels for a map of ", x.sizes(), "; at most ", kMaxNorms, " are accepted");
    if (x.numel() == 0) continue;
    if (!launch.takes(x, own.size())) launch.run();
    launch.add(x, results[k], std::move(own));
  }
  TORCH_CHECK(j == channels.size(), "batch_affine: ", channels.size(), " normalisations, of which the maps have ", j);
  launch.run();
  return results;
}

std::vector<at::Tensor> running_affines(at::IntArrayRef tables, at::IntArrayRef channels, at::TensorList weights,
                                        at::TensorList biases, at::TensorList running_means,
                                        at::TensorList running_vars, at::ArrayRef<double> eps, bool wide) {
  TORCH_CHECK(!running_means.empty(), "running_affine: no normalisation is given");
  const Norms norms{channels, weights, biases, running_means, running_vars, eps, running_means[0].device(), false};
  norms.check("running_affine");
  const c10::cuda::CUDAGuard guard(norms.device);
  int64_t width = 0, all = 0;
  for (const int64_t n : channels) width += n;
  for (const int64_t n : tables) all += n;
  TORCH_CHECK(width == all, "running_affine: normalisations of ", width, " channels for tables of ", all);
  // One buffer for all: the tables are slices of it.
  const at::Tensor memory = new_values({4 * width}, wide ? at::kDouble : at::kFloat, norms.device);
  AT_DISPATCH_FLOATING_TYPES(memory.scalar_type(), "bn_running_affine_cuda", [&] {
    int64_t begin = 0, first = 0;  // of the norm, of its table
    size_t table = 0;
    for (size_t next = 0; next < channels.size();) {
      BnRunningAffineArguments<scalar_t> a;
      for (; a.count < kMaxNorms && next < channels.size(); ++a.count, begin += channels[next++]) {
        while (begin >= first + tables[table]) first += tables[table++];
        TORCH_CHECK(begin + channels[next] <= first + tables[table], "running_affine: a normalisation of ",
                    channels[next], " channels is in two tables");
        a.norms[a.count] = norms.get(next, begin);
        a.first[a.count] = to_int(first);
        a.width[a.count] = to_int(tables[table]);
      }
      a.result = memory.mutable_data_ptr<scalar_t>();
      check_launch("running_affine", bn_running_affine(a, c10::cuda::getCurrentCUDAStream()), memory);
    }
  });
  std::vector<at::Tensor> results;
  int64_t first = 0;
  for (const int64_t n : tables) {
    results.push_back(part_of(memory, 4 * first, {4, n}));
    first += n;
  }
  return results;
}

namespace {

struct Applied {
  Layout layout;
  at::Tensor x, residual, affine, other, out;
  bool relu;
};

}  // namespace

std::vector<at::Tensor> bn_act(const std::vector<BnActMap>& maps) {
  std::vector<at::Tensor> outs;
  if (maps.empty()) return outs;
  const c10::cuda::CUDAGuard guard(maps[0].x.device());
  std::vector<Applied> applied;
  for (const BnActMap& map : maps) {
    const Layout layout(map.x);
    outs.push_back(new_map(map.x, layout.format));
    if (outs.back().numel() == 0) continue;
    applied.push_back({layout, layout.laid_out("bn_act", map.x), layout.laid_out("bn_act", map.residual),
                       layout.table("bn_act", map.affine, 4),
                       map.residual_affine ? layout.table("bn_act", *map.residual_affine, 4) : at::Tensor(),
                       outs.back(), map.relu});
  }
  in_launches(applied, [](const Applied* own, int count) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, own->layout.type, "bn_act_cuda", [&] {
      using T = Bits<scalar_t>::type;
      BnActArguments<T> a[kMaxMaps];
      for (int k = 0; k < count; ++k) {
        const Applied& map = own[k];
        a[k].shape = map.layout.shape;
        a[k].x = map.layout.map<const T>(map.x);
        a[k].residual = map.layout.map<const T>(map.residual);
        a[k].out = map.layout.map<T>(map.out);
        a[k].affine = map.affine.const_data_ptr<math_t<T>>();
        a[k].residual_affine = values_or_null<math_t<T>>(map.other);
        a[k].relu = map.relu;
      }
      check_launch("bn_act", bn_act_apply(a, count, c10::cuda::getCurrentCUDAStream()), own->x);
    });
  });
  return outs;
}

}  // namespace hrnet_fast::cuda
