// One convolution on tensors, through maps with halos: for tests and benchmarks. The engine lays out its maps once.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "conv.h"

namespace hrnet_fast::cpu {

// float32 or bfloat16 [N, C, H, W] of any strides; weight [out, C, k, k], k 1 or 3; bias [out]; residual like the
// output. `relu` is [begin, end) of output channels. With `padding_channels` every map is a slice of one wider by that
// many. Memory that the kernels must not read (beside slices, slack, outputs) is NaN.
class HaloConv : public torch::CustomClassHolder {
 public:
  HaloConv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
           const std::optional<at::Tensor>& residual, int64_t stride, std::vector<int64_t> relu,
           int64_t padding_channels);
  ~HaloConv() override { free_conv(packed_); }
  void run();
  at::Tensor output() const;
  // Out-of-place writes of a kernel: values other than zero in the output's halo, or than NaN beside its slice.
  bool intact() const;
  double macs() const { return conv_macs(job_); }

 private:
  at::Tensor allocate(Map& map, int64_t n, int64_t channels, int64_t height, int64_t width) const;
  at::Tensor inside(const Map& map, int64_t channels) const;

  Element type_;
  at::ScalarType dtype_;
  int64_t padding_, out_channels_;
  std::vector<at::Tensor> buffers_;
  PackedConv* packed_ = nullptr;
  ConvJob job_;
};

at::Tensor conv_halo(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     const std::optional<at::Tensor>& residual, int64_t stride, at::IntArrayRef relu,
                     int64_t padding_channels);
// Name of the kernel that `pack_conv` selects now.
std::string conv_kernel_name(bool bfloat16);

}  // namespace hrnet_fast::cpu
