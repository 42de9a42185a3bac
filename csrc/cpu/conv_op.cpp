// One convolution on tensors, through maps with halos.

#include "conv_op.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <limits>

namespace hrnet_fast::cpu {

HaloConv::HaloConv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                   const std::optional<at::Tensor>& residual, int64_t stride, std::vector<int64_t> relu,
                   int64_t padding_channels)
    : dtype_(x.scalar_type()), padding_(padding_channels), out_channels_(weight.size(0)) {
  TORCH_CHECK(dtype_ == at::kFloat || dtype_ == at::kBFloat16, "maps are float32 or bfloat16, not ", dtype_);
  TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == weight.size(3),
              "x is [N, C, H, W] and weight [out, C, k, k]");
  TORCH_CHECK(stride == 1 || stride == 2, "stride is 1 or 2");
  TORCH_CHECK(x.size(2) > 0 && x.size(3) > 0 && padding_ >= 0, "H and W are positive, padding channels not negative");
  TORCH_CHECK(bias.numel() == out_channels_ && relu.size() == 2, "bias is [out], relu [begin, end)");
  type_ = dtype_ == at::kFloat ? Element::float32 : Element::bfloat16;
  const int64_t n = x.size(0), channels = x.size(1), kernel = weight.size(2);
  const int64_t height = (x.size(2) - 1) / stride + 1, width = (x.size(3) - 1) / stride + 1;
  buffers_.push_back(allocate(job_.in, n, channels, x.size(2), x.size(3)));
  inside(job_.in, channels).copy_(x);
  buffers_.push_back(allocate(job_.out, n, out_channels_, height, width));
  if (residual.has_value()) {
    TORCH_CHECK(residual->sizes().vec() == (std::vector<int64_t>{n, out_channels_, height, width}),
                "residual is of the output's shape");
    buffers_.push_back(allocate(job_.residual, n, out_channels_, height, width));
    inside(job_.residual, out_channels_).copy_(*residual);
  }
  const at::Tensor weights = weight.to(at::kFloat).contiguous(), biases = bias.to(at::kFloat).contiguous();
  const ConvShape shape{channels, out_channels_, static_cast<int>(kernel), static_cast<int>(stride), relu[0], relu[1],
                        type_,    padding_ == 0};
  packed_ = pack_conv(shape, weights.data_ptr<float>(), biases.data_ptr<float>());
  job_.packed = packed_;
}

at::Tensor HaloConv::allocate(Map& map, int64_t n, int64_t channels, int64_t height, int64_t width) const {
  map.n = n, map.height = height, map.width = width;
  map.pixel = channels + padding_;
  const at::Tensor buffer = at::full({map_elements(n, height, width, map.pixel)},
                                     std::numeric_limits<float>::quiet_NaN(), at::TensorOptions().dtype(dtype_));
  const int64_t start = map_lead(width, map.pixel) + padding_ / 2;
  map.data = static_cast<char*>(buffer.data_ptr()) + start * buffer.element_size();
  clear_halo(map, channels, type_);
  return buffer;
}

at::Tensor HaloConv::inside(const Map& map, int64_t channels) const {
  return at::from_blob(map.data, {map.n, channels, map.height, map.width}, {map.image(), 1, map.row(), map.pixel},
                       at::TensorOptions().dtype(dtype_));
}

void HaloConv::run() {
  at::parallel_for(0, conv_items(job_), 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) conv_item(job_, item);
    conv_release();
  });
}

at::Tensor HaloConv::output() const {
  // Always a copy: a map of one pixel is already contiguous.
  return inside(job_.out, out_channels_).clone(at::MemoryFormat::Contiguous);
}

bool HaloConv::intact() const {
  const Map& map = job_.out;
  const at::Tensor& buffer = buffers_[1];
  const int64_t lead = map_lead(map.width, map.pixel);
  const at::Tensor pixels = buffer.view({-1, map.pixel});
  const at::Tensor beside = at::cat(
      {pixels.narrow(1, 0, padding_ / 2), pixels.narrow(1, padding_ / 2 + out_channels_, padding_ - padding_ / 2)}, 1);
  const at::Tensor slack = buffer.narrow(0, lead + map.n * map.image(), buffer.numel() - lead - map.n * map.image());
  const at::Tensor images = buffer.narrow(0, lead, map.n * map.image())
                                .view({map.n, map.height + 1, map.width + 1, map.pixel})
                                .narrow(3, padding_ / 2, out_channels_);
  const bool halo =
      images.select(1, map.height).eq(0).all().item<bool>() && images.select(2, map.width).eq(0).all().item<bool>();
  return halo && beside.isnan().all().item<bool>() && slack.isnan().all().item<bool>();
}

at::Tensor conv_halo(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                     const std::optional<at::Tensor>& residual, int64_t stride, at::IntArrayRef relu,
                     int64_t padding_channels) {
  HaloConv conv(x, weight, bias, residual, stride, relu.vec(), padding_channels);
  conv.run();
  TORCH_CHECK(conv.intact(), "the convolution wrote outside of its output");
  return conv.output();
}

std::string conv_kernel_name(bool bfloat16) { return conv_kernel(bfloat16 ? Element::bfloat16 : Element::float32); }

}  // namespace hrnet_fast::cpu
