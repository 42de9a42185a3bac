// bn_act in CUDA, per channel: the parameters of normalisations, and the affine that statistics and parameters make.

#pragma once

#include "bn_act_walk.cuh"

namespace hrnet_fast::cuda {

constexpr int kMaxNorms = 24;  // of one launch: the kernel's parameters have 4 KiB

enum class Kind : int { kFloat, kDouble, kHalf, kBFloat16 };

// Values [channels] of any floating type; null where a normalisation has none.
struct Parameter {
  void* data = nullptr;
  int stride = 1;
  Kind kind = Kind::kFloat;

  HF_DEVICE double get(int i, double otherwise) const {
    if (data == nullptr) return otherwise;
    const int64_t at = static_cast<int64_t>(i) * stride;
    switch (kind) {
      case Kind::kFloat:
        return static_cast<const float*>(data)[at];
      case Kind::kDouble:
        return static_cast<const double*>(data)[at];
      case Kind::kHalf:
        return to_math(static_cast<const __half*>(data)[at]);
      default:
        return to_math(static_cast<const __nv_bfloat16*>(data)[at]);
    }
  }

  HF_DEVICE void set(int i, double value) const {
    const int64_t at = static_cast<int64_t>(i) * stride;
    switch (kind) {
      case Kind::kFloat:
        static_cast<float*>(data)[at] = static_cast<float>(value);
        break;
      case Kind::kDouble:
        static_cast<double*>(data)[at] = value;
        break;
      case Kind::kHalf:
        static_cast<__half*>(data)[at] = from_math<__half>(static_cast<float>(value));
        break;
      default:
        static_cast<__nv_bfloat16*>(data)[at] = from_math<__nv_bfloat16>(static_cast<float>(value));
    }
  }

  // Towards `value`, rounded once.
  HF_DEVICE void move(int i, double value, double momentum) const {
    if (data != nullptr) set(i, (1.0 - momentum) * get(i, 0.0) + momentum * value);
  }
};

// One normalisation of channels [begin, end) of a map.
struct NormArguments {
  Parameter weight, bias, running_mean, running_var;
  double momentum = 0.0, eps = 0.0;
  int begin = 0, end = 0;
};

// Mean, invstd, scale and shift of a norm's channel, `channels` values from each other.
template <typename M>
HF_DEVICE void write_affine(const NormArguments& norm, int own, double mean, double variance, M* to, int channels) {
  const double invstd = 1.0 / sqrt(variance + norm.eps);
  const M scale = static_cast<M>(invstd * norm.weight.get(own, 1.0));
  to[0] = static_cast<M>(mean);
  to[channels] = static_cast<M>(invstd);
  to[2 * static_cast<int64_t>(channels)] = scale;
  // By the scale as it was rounded: the mean is then mapped to the bias but for the rounding of this one value.
  to[3 * static_cast<int64_t>(channels)] = static_cast<M>(norm.bias.get(own, 0.0) - mean * static_cast<double>(scale));
}

// The caller's arguments: affines of running statistics. `begin` and `end` number the channels of all tables together.
template <typename M>
struct BnRunningAffineArguments {
  NormArguments norms[kMaxNorms];
  // Of every norm, the channels [first, first + width) of its table, [4, width] from result + 4 * first on.
  int first[kMaxNorms] = {}, width[kMaxNorms] = {};
  int count = 0;
  M* result = nullptr;
};

template <typename M>
__global__ void __launch_bounds__(kThreads, kBlocks)
    bn_running_affine_kernel(const __grid_constant__ BnRunningAffineArguments<M> plan) {
  const int c = plan.norms[0].begin + static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (c >= plan.norms[plan.count - 1].end) return;
  int k = 0;
  while (c >= plan.norms[k].end) ++k;
  const NormArguments& norm = plan.norms[k];
  const int own = c - norm.begin;
  const double mean = norm.running_mean.get(own, 0.0), variance = norm.running_var.get(own, 1.0);
  M* const table = plan.result + 4 * static_cast<int64_t>(plan.first[k]);
  write_affine(norm, own, mean, variance, table + (c - plan.first[k]), plan.width[k]);
}

// Queues the affines. cudaErrorInvalidValue: no norm or more than kMaxNorms.
template <typename M>
cudaError_t bn_running_affine(const BnRunningAffineArguments<M>& a, cudaStream_t stream) {
  if (a.count < 1 || a.count > kMaxNorms) return cudaErrorInvalidValue;
  const int channels = a.norms[a.count - 1].end - a.norms[0].begin;
  return launch(bn_running_affine_kernel<M>, static_cast<unsigned>(ceil_div(channels, kThreads)), 1, a, stream);
}

}  // namespace hrnet_fast::cuda
