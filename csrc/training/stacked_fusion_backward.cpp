// A stacked fusion, backward: see stacked_fusion.h.

#include <algorithm>

#include "stacked_fusion.h"

namespace hrnet_fast::training {

namespace {

// The gradient of a group's stacked outputs, of its members'. Members that go on are masked by their activations
// `hidden`, unless `relu`: the mask of all is then computed again.
at::Tensor output_gradient(const Group& group, const std::vector<at::Tensor>& given, const at::Tensor& y,
                           const at::Tensor& hidden, bool relu) {
  std::vector<at::Tensor> parts;
  for (size_t j = 0; j < group.members.size(); ++j) {
    const Member& member = group.members[j];
    if (!given[j].defined())
      parts.push_back(at::zeros({y.size(0), member.width(), y.size(2), y.size(3)}, y.options().memory_format({})));
    else if (member.ends() || relu)
      parts.push_back(given[j]);
    else
      parts.push_back(
          at::threshold_backward(given[j], hidden.narrow(1, member.begin - group.going_on(), member.width()), 0));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
}

}  // namespace

Fusion::Result Fusion::backward(Kept kept, const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& outs,
                                const std::vector<at::Tensor>& grads, bool together, const std::vector<bool>& want_xs,
                                const std::vector<Wanted>& wanted) const {
  std::vector<at::Tensor> hidden(groups_.size());
  for (const auto& wave : waves_) activate(wave, kept.ys, kept.affines, hidden);
  Result result;
  result.xs.resize(sources_);
  const auto add = [&](size_t branch, const at::Tensor& grad) {
    at::Tensor& sum = result.xs[branch];
    sum = sum.defined() ? sum + grad : grad;
  };
  // Gradients of members' outputs: normalised where a term ends, activated where it goes on.
  std::vector<std::vector<at::Tensor>> of_member(groups_.size());
  for (size_t k = 0; k < groups_.size(); ++k) of_member[k].resize(groups_[k].members.size());

  for (size_t r = 0; r < rows_.size(); ++r) {
    if (!grads[r].defined()) continue;
    const auto& row = rows_[r];
    std::vector<int64_t> sizes, want(2 * row.size(), 0);
    std::vector<bool> same;
    size_t first = row.size();  // one masked gradient serves all terms of the target's size
    for (size_t j = 0; j < row.size(); ++j) {
      const at::Tensor& map = row[j].layers.empty() ? xs[row[j].source] : kept.ys[place(row[j]).group];
      sizes.push_back(map.size(2));
      sizes.push_back(map.size(3));
      same.push_back(map.size(2) == outs[r].size(2) && map.size(3) == outs[r].size(3));
      if (same[j] && first == row.size()) first = j;
      want[j] = !same[j] || j == first;
    }
    const std::vector<at::Tensor> none(row.size());
    const auto found = fuse_sum_backward(grads[r], outs[r], none, none, sizes, mode_, true, want);
    for (size_t j = 0; j < row.size(); ++j) {
      const at::Tensor& g = same[j] ? found[first] : found[j];
      if (row[j].layers.empty())
        add(row[j].source, g);
      else
        of_member[place(row[j]).group][place(row[j]).member] = g;
    }
  }

  std::vector<size_t> starts;
  size_t total = 0;
  for (const Group& group : groups_) {
    starts.push_back(total);
    total += group.members.size();
  }
  result.members.resize(total);
  std::vector<at::Tensor> weights(groups_.size());  // gradients of the stacked weights
  std::vector<bool> has_weight(total);
  // The groups of a wave do not depend on each other.
  std::vector<std::vector<size_t>> joint;
  for (size_t w = waves_.size(); w-- > 0;) {
    const std::vector<size_t> wave(waves_[w].rbegin(), waves_[w].rend());
    if (together)
      joint.push_back(wave);
    else
      for (const size_t k : wave) joint.push_back({k});
  }
  for (const auto& wave : joint) {
    std::vector<size_t> reached;
    std::vector<BackwardSumsMap> summed;
    for (const size_t k : wave) {
      const Group& group = groups_[k];
      if (std::none_of(of_member[k].begin(), of_member[k].end(), [](const at::Tensor& t) { return t.defined(); }))
        continue;
      // Then one mask, computed again, serves all.
      const bool relu =
          std::none_of(group.members.begin(), group.members.end(), [](const Member& m) { return m.ends(); });
      reached.push_back(k);
      summed.push_back({output_gradient(group, of_member[k], kept.ys[k], hidden[k], relu), std::nullopt, kept.ys[k],
                        kept.affines[k], std::nullopt, relu, false});
    }
    const auto sums = backward_sums(summed);
    std::vector<BackwardInputMap> inputs;
    for (size_t i = 0; i < reached.size(); ++i)
      inputs.push_back({std::move(summed[i].grad), summed[i].x, summed[i].affine, sums[i].sums, counts_[reached[i]],
                        summed[i].relu});
    const auto dys = backward_input(inputs);
    for (size_t i = 0; i < reached.size(); ++i) {
      const size_t k = reached[i];
      const Group& group = groups_[k];
      const Wanted* own = &wanted[starts[k]];
      const bool want_weight = std::any_of(own, own + group.members.size(), [](const Wanted& w) { return w[0]; });
      const bool want_x = group.parent >= 0 || want_xs[group.source];
      const auto found = convolve_backward(dys[i], input(group, xs, hidden), kept.weights[k], group.layer(),
                                           {want_x, want_weight, group.bias().defined() && own[0][1]});
      if (found.x.defined()) {
        if (group.parent >= 0)
          of_member[group.parent][group.feeder] = found.x;
        else
          add(group.source, found.x);
      }
      weights[k] = found.weight;
      const int64_t all = group.channels();
      const at::Tensor bias = cast(found.bias, group.layer().weight.scalar_type());
      for (size_t j = 0; j < group.members.size(); ++j) {
        if (!of_member[k][j].defined()) continue;
        const Member& member = group.members[j];
        const ConvNorm& layer = member.layer();
        Gradients& gradients = result.members[starts[k] + j];
        gradients.bias = bias;
        if (own[j][2] && layer.scale.defined())
          gradients.scale =
              cast(part_of(sums[i].sums, all + member.begin, {member.width()}), layer.scale.scalar_type());
        if (own[j][3] && layer.shift.defined())
          gradients.shift = cast(part_of(sums[i].sums, member.begin, {member.width()}), layer.shift.scalar_type());
        of_member[k][j] = at::Tensor();
        has_weight[starts[k] + j] = own[j][0];
      }
    }
  }
  // In the parameters' own dtypes; together those of the first one's, which nearly always is all.
  const auto dtype_of = [&](size_t k) { return groups_[k].layer().weight.scalar_type(); };
  std::vector<at::Tensor*> converted;
  for (size_t k = 0; k < groups_.size(); ++k)
    if (dtype_of(k) == dtype_of(0)) converted.push_back(&weights[k]);
  if (!converted.empty()) cast_together(converted, dtype_of(0));
  for (size_t k = 0; k < groups_.size(); ++k)
    for (size_t j = 0; j < groups_[k].members.size(); ++j) {
      const Member& member = groups_[k].members[j];
      if (has_weight[starts[k] + j])
        result.members[starts[k] + j].weight =
            cast(weights[k].narrow(0, member.begin, member.width()), member.layer().weight.scalar_type());
    }
  return result;
}

}  // namespace hrnet_fast::training
