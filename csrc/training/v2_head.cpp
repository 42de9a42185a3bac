// HRNetV2's head, forward and backward: see v2_head.h.

#include "v2_head.h"

namespace hrnet_fast::training {

namespace {

// The part of the mix's weight [K, C, 1, 1] that convolves the map `x`, and where the next one's begins.
at::Tensor own_part(const at::Tensor& weight, const at::Tensor& x, int64_t& start) {
  const int64_t first = start;
  start += x.size(1);
  return weight.narrow(1, first, x.size(1));
}

}  // namespace

std::vector<at::Tensor> V2HeadCall::parameters() const {
  return {mix_.weight, mix_.bias, mix_.scale, mix_.shift, classifier_.weight, classifier_.bias};
}

at::Tensor V2HeadCall::forward(const std::vector<at::Tensor>& xs, Kept& kept) const {
  count_batches({&mix_});
  kept.mix = mix_.weight;
  kept.classifier = classifier_.weight;
  std::vector<at::Tensor*> converted;  // oneDNN's strided convolutions may be computed in float32 (conv_norm.cpp)
  if (!xs[0].is_cpu() || mix_.stride.back() == 1) converted.push_back(&kept.mix);
  if (!xs[0].is_cpu() || classifier_.stride.back() == 1) converted.push_back(&kept.classifier);
  cast_together(converted, xs[0].scalar_type());
  std::vector<at::Tensor> maps;
  int64_t start = 0;
  for (const at::Tensor& x : xs)
    maps.push_back(convolve(x, own_part(kept.mix, x, start), maps.empty() ? mix_.bias : at::Tensor(), mix_));
  const std::vector<at::Tensor> absent(xs.size());
  const int64_t size[2] = {maps[0].size(2), maps[0].size(3)};
  const at::Tensor y = fuse_sum(maps, absent, absent, size, mode_, false);
  maps.clear();
  kept.mixed = normalise({y}, {{&mix_}}, running_affines({{&mix_}}, y.scalar_type()))[0];
  const at::Tensor a = bn_act({{y, kept.mixed.affine, std::nullopt, std::nullopt}})[0];
  return convolve(a, kept.classifier, classifier_.bias, classifier_);
}

std::vector<at::Tensor> V2HeadCall::backward(const Kept& kept, const std::vector<at::Tensor>& xs,
                                             const at::Tensor& grad, const std::vector<bool>& want_xs,
                                             const std::vector<bool>& wanted) const {
  const auto& [y, affine, count] = kept.mixed;
  const size_t n = xs.size();
  const at::Tensor a = bn_act({{y, affine, std::nullopt, std::nullopt}})[0];
  auto last = convolve_backward(grad, a, kept.classifier, classifier_, {true, wanted[4], wanted[5]});
  const at::Tensor sums = backward_sums({{last.x, std::nullopt, y, affine, std::nullopt, true, false}})[0].sums;
  const at::Tensor dy = backward_input({{last.x, y, affine, sums, count, true}})[0];
  last.x = at::Tensor();
  std::vector<int64_t> sizes, resampled(2 * n, 0);
  for (size_t k = 0; k < n; ++k) {
    sizes.insert(sizes.end(), {xs[k].size(2), xs[k].size(3)});
    resampled[k] = k > 0;  // the first map has the sum's size
  }
  const std::vector<at::Tensor> absent(n);
  std::vector<at::Tensor> small = fuse_sum_backward(dy, y, absent, absent, sizes, mode_, false, resampled);
  small[0] = dy;
  std::vector<at::Tensor> found, weights;
  at::Tensor bias;
  int64_t start = 0;
  for (size_t k = 0; k < n; ++k) {
    const bool first = k == 0;
    const auto own = convolve_backward(small[k], xs[k], own_part(kept.mix, xs[k], start), mix_,
                                       {want_xs[k], wanted[0], first && wanted[1]});
    found.push_back(own.x);
    weights.push_back(own.weight);
    if (first) bias = own.bias;
  }
  at::Tensor weight = wanted[0] ? at::cat(weights, 1) : at::Tensor();
  std::vector<at::Tensor*> converted{&weight};
  if (classifier_.weight.scalar_type() == mix_.weight.scalar_type()) converted.push_back(&last.weight);
  cast_together(converted, mix_.weight.scalar_type());
  found.push_back(weight);
  found.push_back(cast(bias, mix_.weight.scalar_type()));
  found.push_back(wanted[2] ? cast(row_of(sums, 1), mix_.scale.scalar_type()) : at::Tensor());
  found.push_back(wanted[3] ? cast(row_of(sums, 0), mix_.shift.scalar_type()) : at::Tensor());
  found.push_back(cast(last.weight, classifier_.weight.scalar_type()));
  found.push_back(cast(last.bias, classifier_.weight.scalar_type()));
  return found;
}

}  // namespace hrnet_fast::training
