// Which convolutions of a fusion are stacked, and what each target sums: see stacked_fusion.h.

#include <algorithm>

#include "stacked_fusion.h"

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

}  // namespace hrnet_fast::training
