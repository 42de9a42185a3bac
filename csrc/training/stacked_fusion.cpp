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

at::Tensor Fusion::weight(const Group& group, at::ScalarType dtype) const {
  if (group.members.size() == 1) return group.layer().weight;
  std::vector<at::Tensor> weights;
  for (const Member& member : group.members) weights.push_back(member.layer().weight);
  return at::cat(weights);
}

std::vector<at::Tensor> Fusion::weights(at::ScalarType dtype) const {
  std::vector<at::Tensor> found;
  for (const Group& group : groups_) found.push_back(weight(group, dtype));
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

at::Tensor activated(const Group& group, const at::Tensor& y, const at::Tensor& affine) {
  const int64_t first = group.going_on(), width = group.channels() - first;
  return bn_act(y.narrow(1, first, width), affine.narrow(1, first, width), std::nullopt, std::nullopt, true);
}

at::Tensor bias_of(const Group& group) { return group.members.size() == 1 ? group.layer().bias : at::Tensor(); }

}  // namespace

std::vector<at::Tensor> Fusion::forward(const std::vector<at::Tensor>& xs, Kept* kept) {
  std::vector<const ConvNorm*> all;
  for (const Group& group : groups_)
    for (const Member& member : group.members) all.push_back(&member.layer());
  count_batches(all);
  std::vector<at::Tensor> hidden(groups_.size());
  std::vector<Saved> saved(groups_.size());
  for (const auto& wave : waves_) {
    std::vector<at::Tensor> ys;
    std::vector<const ConvNorm*> layers;
    for (const size_t k : wave) {
      const Group& group = groups_[k];
      const at::Tensor own = weight(group, xs[0].scalar_type());
      ys.push_back(convolve(input(group, xs, hidden), own, bias_of(group), group.layer()));
      for (const Member& member : group.members) layers.push_back(&member.layer());
      if (kept != nullptr) kept->weights.push_back(own);
    }
    const auto found = normalise(ys, layers);
    for (size_t i = 0; i < wave.size(); ++i) {
      const Group& group = groups_[wave[i]];
      saved[wave[i]] = found[i];
      if (group.going_on() < group.channels()) hidden[wave[i]] = activated(group, found[i].y, found[i].affine);
    }
  }
  const at::Tensor absent = at::empty({0}, xs[0].options().memory_format({}));
  std::vector<at::Tensor> outs;
  for (const auto& row : rows_) {
    std::vector<at::Tensor> maps, scales, shifts;
    for (const Term& term : row) {
      if (term.layers.empty()) {
        maps.push_back(xs[term.source]);
        scales.push_back(absent);
        shifts.push_back(absent);
        continue;
      }
      const Place at = place(term);
      const Member& member = groups_[at.group].members[at.member];
      const int64_t width = member.end - member.begin;
      maps.push_back(saved[at.group].y.narrow(1, member.begin, width));
      scales.push_back(saved[at.group].affine[2].narrow(0, member.begin, width));
      shifts.push_back(saved[at.group].affine[3].narrow(0, member.begin, width));
    }
    const at::Tensor& target = xs[row[0].target];
    const int64_t size[2] = {target.size(2), target.size(3)};
    outs.push_back(fuse_sum(maps, scales, shifts, size, mode_, true));
  }
  if (kept != nullptr) {
    counts_.clear();
    for (Saved& one : saved) {
      kept->ys.push_back(one.y);
      kept->affines.push_back(one.affine);
      counts_.push_back(one.count);
    }
  }
  return outs;
}

Fusion::Result Fusion::backward(Kept kept, const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& outs,
                                const std::vector<at::Tensor>& grads, const std::vector<bool>& want_xs,
                                const std::vector<Wanted>& wanted) const {
  std::vector<at::Tensor> hidden(groups_.size());
  for (size_t k = 0; k < groups_.size(); ++k)
    if (groups_[k].going_on() < groups_[k].channels()) hidden[k] = activated(groups_[k], kept.ys[k], kept.affines[k]);
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
    const auto found = fuse_sum_backward(grads[r], outs[r], sizes, mode_, true, want);
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
  for (size_t k = groups_.size(); k-- > 0;) {
    const Group& group = groups_[k];
    auto& given = of_member[k];
    if (std::none_of(given.begin(), given.end(), [](const at::Tensor& t) { return t.defined(); })) continue;
    // Then one mask, computed again, serves all.
    const bool relu =
        std::none_of(group.members.begin(), group.members.end(), [](const Member& m) { return m.ends(); });
    std::vector<at::Tensor> parts;
    for (size_t j = 0; j < group.members.size(); ++j) {
      const Member& member = group.members[j];
      const int64_t width = member.end - member.begin;
      const at::Tensor& y = kept.ys[k];
      if (!given[j].defined())
        parts.push_back(at::zeros({y.size(0), width, y.size(2), y.size(3)}, y.options().memory_format({})));
      else if (member.ends() || relu)
        parts.push_back(given[j]);
      else
        parts.push_back(
            at::threshold_backward(given[j], hidden[k].narrow(1, member.begin - group.going_on(), width), 0));
    }
    const at::Tensor g = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
    const auto [sums, unused] = backward_sums(g, std::nullopt, kept.ys[k], kept.affines[k], std::nullopt, relu, false);
    const at::Tensor dy = backward_input(g, kept.ys[k], kept.affines[k], sums, counts_[k], relu);
    const Wanted* own = &wanted[starts[k]];
    const bool want_weight = std::any_of(own, own + group.members.size(), [](const Wanted& w) { return w[0]; });
    const bool want_x = group.parent >= 0 || want_xs[group.source];
    const auto found =
        convolve_backward(dy, input(group, xs, hidden), kept.weights[k], group.layer().weight.scalar_type(),
                          group.layer(), {want_x, want_weight, bias_of(group).defined() && own[0][1]});
    if (found.x.defined()) {
      if (group.parent >= 0)
        of_member[group.parent][group.feeder] = found.x;
      else
        add(group.source, found.x);
    }
    for (size_t j = 0; j < group.members.size(); ++j) {
      if (!given[j].defined()) continue;
      const Member& member = group.members[j];
      const int64_t width = member.end - member.begin;
      Gradients& gradients = result.members[starts[k] + j];
      if (own[j][0]) gradients.weight = found.weight.narrow(0, member.begin, width);
      gradients.bias = found.bias;
      const ConvNorm& layer = member.layer();
      if (own[j][2] && layer.scale.defined())
        gradients.scale = cast(sums[1].narrow(0, member.begin, width), layer.scale.scalar_type());
      if (own[j][3] && layer.shift.defined())
        gradients.shift = cast(sums[0].narrow(0, member.begin, width), layer.shift.scalar_type());
    }
    given.clear();
    given.resize(group.members.size());
  }
  return result;
}

}  // namespace hrnet_fast::training
