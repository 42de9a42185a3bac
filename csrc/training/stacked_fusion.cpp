// A fusion unit, forward and backward: see stacked_fusion.h.

#include "stacked_fusion.h"

#include <algorithm>

namespace hrnet_fast::training {

namespace {

bool same_geometry(const ConvNorm& a, const ConvNorm& b) {
  // A bias or channel groups are rare here; such a convolution stays by itself.
  const auto alone = [](const ConvNorm& l) { return l.groups != 1 || l.bias.defined(); };
  return !alone(a) && !alone(b) && a.weight.sizes().slice(1) == b.weight.sizes().slice(1) &&
         a.weight.scalar_type() == b.weight.scalar_type() && a.stride == b.stride && a.padding == b.padding &&
         a.dilation == b.dilation;
}

std::vector<Member> stacked(std::vector<const Term*> terms, size_t depth) {
  std::stable_sort(terms.begin(), terms.end(), [&](const Term* a, const Term* b) {
    const bool first = depth + 1 < a->layers.size(), second = depth + 1 < b->layers.size();
    return first != second ? !first : a->target < b->target;
  });
  std::vector<Member> members;
  int64_t start = 0;
  for (const Term* term : terms) {
    const int64_t end = start + term->layers[depth].weight.size(0);
    members.push_back({term, depth, start, end});
    start = end;
  }
  return members;
}

}  // namespace

int64_t Group::going_on() const {
  for (const Member& member : members)
    if (!member.ends()) return member.begin;
  return channels();
}

Fusion::Fusion(std::vector<std::vector<Term>> rows, size_t sources, int64_t mode)
    : rows_(std::move(rows)), sources_(sources), mode_(mode), places_(rows_.size() * sources) {
  struct Feeding {
    int64_t parent;
    size_t feeder, source;
    std::vector<const Term*> users;
  };
  std::vector<Feeding> inputs;
  for (size_t x = 0; x < sources; ++x) {
    Feeding feeding{-1, 0, x, {}};
    for (const auto& row : rows_)
      for (const Term& term : row)
        if (term.source == x && !term.layers.empty()) feeding.users.push_back(&term);
    inputs.push_back(feeding);
  }
  for (size_t depth = 0; !inputs.empty(); ++depth) {
    std::vector<size_t> wave;
    std::vector<Feeding> following;
    for (const Feeding& feeding : inputs) {
      std::vector<std::vector<const Term*>> alike;
      for (const Term* term : feeding.users) {
        auto found = std::find_if(alike.begin(), alike.end(), [&](const auto& others) {
          return same_geometry(others[0]->layers[depth], term->layers[depth]);
        });
        if (found == alike.end())
          alike.push_back({term});
        else
          found->push_back(term);
      }
      for (auto& terms : alike) {
        Group group{stacked(std::move(terms), depth), feeding.parent, feeding.feeder, feeding.source};
        for (size_t j = 0; j < group.members.size(); ++j) {
          const Member& member = group.members[j];
          if (member.ends())
            places_[member.term->target * sources_ + member.term->source] = {groups_.size(), j};
          else
            following.push_back({static_cast<int64_t>(groups_.size()), j, feeding.source, {member.term}});
        }
        wave.push_back(groups_.size());
        groups_.push_back(std::move(group));
      }
    }
    if (!wave.empty()) waves_.push_back(std::move(wave));
    inputs = std::move(following);
  }
}

std::vector<Member> Fusion::members() const {
  std::vector<Member> found;
  for (const Group& group : groups_) found.insert(found.end(), group.members.begin(), group.members.end());
  return found;
}

bool Fusion::alike() const {
  for (const Group& group : groups_)
    for (const Member& member : group.members)
      if (member.layer().batch != groups_[0].layer().batch) return false;
  return true;
}

std::optional<std::pair<size_t, size_t>> Fusion::misfit(const std::vector<std::array<int64_t, 2>>& sizes,
                                                        bool exact) const {
  for (const auto& row : rows_)
    for (const Term& term : row) {
      if (term.source > term.target && !exact) continue;
      for (size_t axis = 0; axis < 2; ++axis) {
        int64_t size = sizes[term.source][axis];
        for (const ConvNorm& layer : term.layers) {
          const int64_t covered = layer.dilation[axis] * (layer.weight.size(2 + axis) - 1) + 1;
          size = (size + 2 * layer.padding[axis] - covered) / layer.stride[axis] + 1;
        }
        if (term.source > term.target) size <<= term.source - term.target;
        if (size != sizes[term.target][axis]) return std::make_pair(term.source, term.target);
      }
    }
  return std::nullopt;
}

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
  const int64_t width = member.end - member.begin;
  return h.size(1) == width ? h : h.narrow(1, member.begin - parent.going_on(), width);
}

namespace {

// The pass that gives the inputs of the terms that go on.
BnActMap activated(const Group& group, const at::Tensor& y, const at::Tensor& affine) {
  const int64_t first = group.going_on(), width = group.channels() - first;
  return {y.narrow(1, first, width), affine.narrow(1, first, width), std::nullopt, std::nullopt};
}

at::Tensor bias_of(const Group& group) { return group.members.size() == 1 ? group.layer().bias : at::Tensor(); }

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
      ys.push_back(convolve(input(group, xs, hidden), own[k], bias_of(group), group.layer()));
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
      const int64_t width = member.end - member.begin;
      maps.push_back(outputs[at.group].narrow(1, member.begin, width));
      const int64_t all = groups_[at.group].channels();
      scales.push_back(part_of(affines[at.group], 2 * all + member.begin, {width}));
      shifts.push_back(part_of(affines[at.group], 3 * all + member.begin, {width}));
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

namespace {

// The gradient of a group's stacked outputs, of its members'. Members that go on are masked by their activations
// `hidden`, unless `relu`: the mask of all is then computed again.
at::Tensor output_gradient(const Group& group, const std::vector<at::Tensor>& given, const at::Tensor& y,
                           const at::Tensor& hidden, bool relu) {
  std::vector<at::Tensor> parts;
  for (size_t j = 0; j < group.members.size(); ++j) {
    const Member& member = group.members[j];
    const int64_t width = member.end - member.begin;
    if (!given[j].defined())
      parts.push_back(at::zeros({y.size(0), width, y.size(2), y.size(3)}, y.options().memory_format({})));
    else if (member.ends() || relu)
      parts.push_back(given[j]);
    else
      parts.push_back(at::threshold_backward(given[j], hidden.narrow(1, member.begin - group.going_on(), width), 0));
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
                                           {want_x, want_weight, bias_of(group).defined() && own[0][1]});
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
        const int64_t width = member.end - member.begin;
        Gradients& gradients = result.members[starts[k] + j];
        gradients.bias = bias;
        if (own[j][2] && layer.scale.defined())
          gradients.scale = cast(part_of(sums[i].sums, all + member.begin, {width}), layer.scale.scalar_type());
        if (own[j][3] && layer.shift.defined())
          gradients.shift = cast(part_of(sums[i].sums, member.begin, {width}), layer.shift.scalar_type());
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
            cast(weights[k].narrow(0, member.begin, member.end - member.begin), member.layer().weight.scalar_type());
    }
  return result;
}

}  // namespace hrnet_fast::training
