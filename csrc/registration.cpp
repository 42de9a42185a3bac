// The module hrnet_fast._C: build information, and the registration of the compiled implementations.
//
// Public operators, checks, fakes and autograd are in Python (hrnet_fast/ops). This file registers one implementation
// of each, on checked arguments.

#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include <string>

#include "cpu/bn_act.h"
#include "cpu/clones.h"
#include "cpu/conv.h"
#include "cpu/fuse_sum.h"
#include "cpu/heatmaps.h"
#include "cpu/pictures.h"
#include "cpu/program_bindings.h"
#include "training/bindings.h"
#if defined(HRNET_FAST_WITH_CUDA)
#include "cuda/operators.h"
#endif

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["instructions"] = hrnet_fast::cpu::instruction_set();
  info["convolutions"] = std::string(hrnet_fast::cpu::conv_kernel(hrnet_fast::cpu::Element::float32)) + ", " +
                         hrnet_fast::cpu::conv_kernel(hrnet_fast::cpu::Element::bfloat16);
  info["cplusplus"] = std::to_string(__cplusplus);
#if defined(HRNET_FAST_WITH_CUDA)
  info["cuda"] = "compiled in";
#else
  info["cuda"] = "none";
#endif
  return info;
}

}  // namespace

namespace {

// Operators return defined tensors, none of which is another.
template <auto kFunction>
std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                          at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                          at::IntArrayRef wanted) {
  auto found = kFunction(grad, out, xs, scales, sizes, mode, relu, wanted);
  for (at::Tensor& t : found)
    if (!t.defined()) t = at::empty({0}, grad.options());
  return found;
}

using hrnet_fast::OptionalTensor;

std::tuple<at::Tensor, at::Tensor> with_masked(at::Tensor sums, at::Tensor masked, const at::Tensor& x) {
  if (!masked.defined()) masked = at::empty({0}, x.options());
  return {std::move(sums), std::move(masked)};
}

std::tuple<at::Tensor, at::Tensor> backward_sums_cpu(const at::Tensor& grad, const OptionalTensor& addend,
                                                     const at::Tensor& x, const at::Tensor& affine,
                                                     const OptionalTensor& out, bool relu, bool keep) {
  auto [sums, masked] = hrnet_fast::cpu::backward_sums(grad, addend, x, affine, out, relu, keep);
  return with_masked(std::move(sums), std::move(masked), x);
}

at::Tensor backward_input_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& affine,
                              const at::Tensor& sums, double count, bool relu) {
  return hrnet_fast::cpu::backward_input(grad, x, affine, sums, count, relu);
}

}  // namespace

#if defined(HRNET_FAST_WITH_CUDA)
namespace {

// The passes of one map, as operators.
at::Tensor running_affine(at::IntArrayRef channels, at::TensorList weights, at::TensorList biases,
                          at::TensorList running_means, at::TensorList running_vars, at::ArrayRef<double> eps,
                          bool wide) {
  int64_t width = 0;
  for (const int64_t n : channels) width += n;
  return hrnet_fast::cuda::running_affines({width}, channels, weights, biases, running_means, running_vars, eps,
                                           wide)[0];
}

at::Tensor bn_act(const at::Tensor& x, const at::Tensor& affine, const OptionalTensor& residual,
                  const OptionalTensor& residual_affine, bool relu) {
  return hrnet_fast::cuda::bn_act({{x, affine, residual, residual_affine, relu}})[0];
}

std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& grad, const OptionalTensor& addend,
                                                 const at::Tensor& x, const at::Tensor& affine,
                                                 const OptionalTensor& out, bool relu, bool keep) {
  auto found = hrnet_fast::cuda::backward_sums({{grad, addend, x, affine, out, relu, keep}});
  return with_masked(found[0].sums, found[0].masked, x);
}

at::Tensor backward_input(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& affine, const at::Tensor& sums,
                          double count, bool relu) {
  return hrnet_fast::cuda::backward_input({{grad, x, affine, sums, count, relu}})[0];
}

}  // namespace
#endif

namespace {

// The operators that CPUs and CUDA devices have, as `<name>_<device>`. Absent affines are empty tensors; mode is the
// value of hrnet_fast::Resample.
void define_on(torch::Library& m, const std::string& device) {
  const auto define = [&](const std::string& name, const std::string& signature) {
    m.def((name + "_" + device + signature).c_str());
  };
  define("fuse_sum", "(Tensor[] xs, Tensor[] scales, Tensor[] shifts, int[] size, int mode, bool relu) -> Tensor");
  define("fuse_sum_backward",
         "(Tensor grad, Tensor out, Tensor[] xs, Tensor[] scales, int[] sizes, int mode, bool relu, int[] wanted) -> "
         "Tensor[]");
  define("batch_affine",
         "(Tensor[] xs, int[] channels, Tensor[] weights, Tensor[] biases, Tensor(a!)[] running_means, "
         "Tensor(b!)[] running_vars, float[] momenta, float[] eps) -> Tensor[]");
  define("running_affine",
         "(int[] channels, Tensor[] weights, Tensor[] biases, Tensor[] running_means, Tensor[] running_vars, "
         "float[] eps, bool wide) -> Tensor");
  define("statistics", "(Tensor x) -> Tensor");
  define("bn_act", "(Tensor x, Tensor affine, Tensor? residual, Tensor? residual_affine, bool relu) -> Tensor");
  define("backward_sums",
         "(Tensor grad, Tensor? addend, Tensor x, Tensor affine, Tensor? out, bool relu, bool keep) -> "
         "(Tensor, Tensor)");
  define("backward_input", "(Tensor grad, Tensor x, Tensor affine, Tensor sums, float count, bool relu) -> Tensor");
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(hrnet_fast, m) {
  define_on(m, "cpu");
#if defined(HRNET_FAST_WITH_CUDA)
  define_on(m, "cuda");
#endif
  // Inputs and targets of training, for hrnet_fast.datasets and hrnet_fast.keypoints.
  m.def("warp_pictures_cpu(Tensor[] pictures, Tensor across, Tensor down, Tensor flips) -> Tensor");
  m.def("resize_pictures_cpu(Tensor[] pictures, Tensor rows, Tensor columns) -> Tensor");
  m.def("pick_classes_cpu(Tensor[] maps, Tensor rows, Tensor columns, int outside) -> Tensor");
  m.def("normalize_pictures_cpu(Tensor pictures, float[] mean, float[] std) -> Tensor");
  m.def("place_patches_cpu(Tensor table, Tensor rows, Tensor columns) -> Tensor");
}

TORCH_LIBRARY_IMPL(hrnet_fast, CPU, m) {
  m.impl("fuse_sum_cpu", &hrnet_fast::cpu::fuse_sum_forward);
  m.impl("fuse_sum_backward_cpu", &fuse_sum_backward<hrnet_fast::cpu::fuse_sum_backward>);
  m.impl("batch_affine_cpu", &hrnet_fast::cpu::batch_affine);
  m.impl("running_affine_cpu", &hrnet_fast::cpu::running_affine);
  m.impl("statistics_cpu", &hrnet_fast::cpu::statistics);
  m.impl("bn_act_cpu", &hrnet_fast::cpu::bn_act);
  m.impl("backward_sums_cpu", &backward_sums_cpu);
  m.impl("backward_input_cpu", &backward_input_cpu);
  m.impl("warp_pictures_cpu", &hrnet_fast::cpu::warp_pictures);
  m.impl("resize_pictures_cpu", &hrnet_fast::cpu::resize_pictures);
  m.impl("pick_classes_cpu", &hrnet_fast::cpu::pick_classes);
  m.impl("normalize_pictures_cpu", &hrnet_fast::cpu::normalize_pictures);
  m.impl("place_patches_cpu", &hrnet_fast::cpu::place_patches);
}

#if defined(HRNET_FAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(hrnet_fast, CUDA, m) {
  m.impl("fuse_sum_cuda", &hrnet_fast::cuda::fuse_sum_forward_tensors);
  m.impl("fuse_sum_backward_cuda", &fuse_sum_backward<hrnet_fast::cuda::fuse_sum_backward_tensors>);
  m.impl("batch_affine_cuda", &hrnet_fast::cuda::batch_affine);
  m.impl("running_affine_cuda", &running_affine);
  m.impl("statistics_cuda", &hrnet_fast::cuda::statistics);
  m.impl("bn_act_cuda", &bn_act);
  m.impl("backward_sums_cuda", &backward_sums);
  m.impl("backward_input_cuda", &backward_input);
}
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "hrnet_fast's compiled extension";
  m.def("build_info", &build_info, "What this extension was built with, by name.");
  hrnet_fast::cpu::bind_program(m);
  hrnet_fast::training::bind_training(m);
}
