// A stacked fusion, forward: see stacked_fusion.h.

#include "stacked_fusion.h"

namespace hrnet_fast::training {

std::vector<at::Tensor> Fusion::weights(const at::Tensor& x) const {
  std::vector<at::Tensor> found;
  std::vector<at::Tensor*> converted;
  found.reserve(groups_.size());
  for (const Group& group : groups_) {
    std::vector<at::Tensor> own;
    for (const Member& member : group.members) own.push_back(member.layer().weight);
    found.push_back(own.size() == 1 ? own[0] : at::cat(own));
    // oneDNN's strided convolutions may be computed in float32 (conv_norm.cpp).
    if (!x.is_cpu() || group.layer().stride.back() == 1) converted.push_back(&found.back());
  }
  cast_together(converted, x.scalar_type());
  return found;
}

at::Tensor Fusion::input(const Group& group, const std::vector<at::Tensor>& xs,
                         const std::vector<at::Tensor>& hidden) const {
  if (group.parent < 0) return xs[group.source];
  const Group& parent = groups_[group.parent];
  const Member& member = parent.members[group.feeder];
  const at::Tensor& h = hidden[group.parent];
  return h.size(1) == member.width() ? h : h.narrow(1, member.begin - parent.going_on(), member.width());
}

namespace {

// The pass that gives the inputs of the terms that go on.
BnActMap activated(const Group& group, const at::Tensor& y, const at::Tensor& affine) {
  const int64_t first = group.going_on(), width = group.channels() - first;
  return {y.narrow(1, first, width), affine.narrow(1, first, width), std::nullopt, std::nullopt};
}

Norms norms_of(const Group& group) {
  Norms found;
  for (const Member& member : group.members) found.push_back(&member.layer());
  return found;
}

}  // namespace

// Fills in the inputs of the terms that go on, of the groups numbered `wave`.
void Fusion::activate(const std::vector<size_t>& wave, const std::vector<at::Tensor>& ys,
                      const std::vector<at::Tensor>& affines, std::vector<at::Tensor>& hidden) const {
  std::vector<BnActMap> passes;
  std::vector<size_t> owners;
  for (const size_t k : wave)
    if (groups_[k].going_on() < groups_[k].channels()) {
      passes.push_back(activated(groups_[k], ys[k], affines[k]));
      owners.push_back(k);
    }
  const auto found = bn_act(passes);
  for (size_t i = 0; i < owners.size(); ++i) hidden[owners[i]] = found[i];
}

std::vector<at::Tensor> Fusion::forward(const std::vector<at::Tensor>& xs, Kept* kept) {
  std::vector<const ConvNorm*> all;
  std::vector<Norms> norms;
  for (const Group& group : groups_) {
    norms.push_back(norms_of(group));
    all.insert(all.end(), norms.back().begin(), norms.back().end());
  }
  count_batches(all);
  const auto own = weights(xs[0]);
  const auto running = running_affines(norms, xs[0].scalar_type());
  std::vector<at::Tensor> hidden(groups_.size()), outputs(groups_.size()), affines(groups_.size());
  std::vector<double> counts(groups_.size());
  for (const auto& wave : waves_) {
    std::vector<at::Tensor> ys, tables;
    std::vector<Norms> layers;
    for (const size_t k : wave) {
      const Group& group = groups_[k];
      ys.push_back(convolve(input(group, xs, hidden), own[k], group.bias(), group.layer()));
      layers.push_back(norms[k]);
      tables.push_back(running[k]);
    }
    const auto found = normalise(ys, layers, tables);
    for (size_t i = 0; i < wave.size(); ++i) {
      outputs[wave[i]] = found[i].y;
      affines[wave[i]] = found[i].affine;
      counts[wave[i]] = found[i].count;
    }
    activate(wave, outputs, affines, hidden);
  }
  std::vector<at::Tensor> outs;
  for (const auto& row : rows_) {
    std::vector<at::Tensor> maps, scales, shifts;
    for (const Term& term : row) {
      if (term.layers.empty()) {
        maps.push_back(xs[term.source]);
        scales.emplace_back();
        shifts.emplace_back();
        continue;
      }
      const Place at = place(term);
      const Member& member = groups_[at.group].members[at.member];
      maps.push_back(outputs[at.group].narrow(1, member.begin, member.width()));
      const int64_t all = groups_[at.group].channels();
      scales.push_back(part_of(affines[at.group], 2 * all + member.begin, {member.width()}));
      shifts.push_back(part_of(affines[at.group], 3 * all + member.begin, {member.width()}));
    }
    const at::Tensor& target = xs[row[0].target];
    const int64_t size[2] = {target.size(2), target.size(3)};
    outs.push_back(fuse_sum(maps, scales, shifts, size, mode_, true));
  }
  if (kept != nullptr) {
    counts_ = std::move(counts);
    kept->ys = std::move(outputs);
    kept->affines = std::move(affines);
  }
  return outs;
}

}  // namespace hrnet_fast::training
