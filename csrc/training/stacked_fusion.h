// A fusion, forward and backward as one call each: hrnet_fast/training/fusion_plan.py and stacked_fusion.py in C++.

#pragma once

#include <vector>

#include "conv_norm.h"

namespace hrnet_fast::training {

// How one branch reaches one target: layers with ReLU between and none after, then upsampling if it is coarser.
struct Term {
  size_t source, target;
  std::vector<ConvNorm> layers;  // none: the identity
};

// One term's convolution within a group; its outputs are channels [begin, end) of the group's.
struct Member {
  const Term* term;
  size_t depth;
  int64_t begin, end;

  const ConvNorm& layer() const { return term->layers[depth]; }
  int64_t width() const { return end - begin; }
  bool ends() const { return depth + 1 == term->layers.size(); }
};

// Convolutions that share an input, executed as one with stacked outputs. Members whose terms go on come last.
struct Group {
  std::vector<Member> members;
  int64_t parent;  // number of the group whose member feeds this one; -1: the branch `source` does
  size_t feeder;   // which member of the parent
  size_t source;

  const ConvNorm& layer() const { return members[0].layer(); }
  int64_t channels() const { return members.back().end; }
  // Of the one convolution that a group with a bias has.
  at::Tensor bias() const { return members.size() == 1 ? layer().bias : at::Tensor(); }
  // First channel of the members whose terms go on.
  int64_t going_on() const;
};

// A fusion at a call.
class Fusion {
 public:
  // `rows`: per target, its terms in the order of summation. `mode` is the value of hrnet_fast::Resample.
  Fusion(std::vector<std::vector<Term>> rows, size_t sources, int64_t mode);
  Fusion(const Fusion&) = delete;
  Fusion& operator=(const Fusion&) = delete;

  struct Kept {
    std::vector<at::Tensor> ys, affines, weights;  // per group
  };

  // Every target [N, C_r, H_r, W_r] of the branches' outputs. Fills `kept`, but for weights, if it is not null.
  std::vector<at::Tensor> forward(const std::vector<at::Tensor>& xs, Kept* kept);

  struct Result {
    std::vector<at::Tensor> xs;      // undefined: not wanted, or no gradient reached it
    std::vector<Gradients> members;  // in the order of members()
  };
  // `grads` of targets that nothing used are undefined. `together`: groups that do not depend on each other share the
  // launches of their passes.
  Result backward(Kept kept, const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& outs,
                  const std::vector<at::Tensor>& grads, bool together, const std::vector<bool>& want_xs,
                  const std::vector<Wanted>& wanted) const;

  // The groups' weights, stacked, as convolutions of maps like `x` take them.
  std::vector<at::Tensor> weights(const at::Tensor& x) const;
  // All members, group by group.
  std::vector<Member> members() const;
  // The first term (source, target) whose map does not fit its target, given the branches' (height, width); coarser
  // maps must fit by a power of two only if `exact`.
  std::optional<std::pair<size_t, size_t>> misfit(const std::vector<std::array<int64_t, 2>>& sizes, bool exact) const;
  size_t groups() const { return groups_.size(); }
  bool alike() const;  // whether all normalisations take the same statistics

 private:
  struct Place {
    size_t group, member;
  };
  at::Tensor input(const Group& group, const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& hidden) const;
  void activate(const std::vector<size_t>& wave, const std::vector<at::Tensor>& ys,
                const std::vector<at::Tensor>& affines, std::vector<at::Tensor>& hidden) const;
  Place place(const Term& term) const { return places_[term.target * sources_ + term.source]; }

  std::vector<std::vector<Term>> rows_;
  size_t sources_;
  int64_t mode_;
  std::vector<Group> groups_;  // a group comes after its parent
  std::vector<std::vector<size_t>> waves_;
  std::vector<Place> places_;  // of terms' last convolutions
  std::vector<double> counts_;
};

}  // namespace hrnet_fast::training
