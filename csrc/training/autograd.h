// Chains and fusions as nodes of autograd's graph: one each, differentiable once.
//
// A consumer of a chain's or a fusion's output keeps no tensor, but the node that can compute it again:
// hrnet_fast/training/recompute.py, whose nodes in Python are understood here and the other way round.

#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "calls.h"

namespace hrnet_fast::training {

// A node of the graph as this version of PyTorch holds it.
using NodePointer = std::decay_t<decltype(std::declval<const at::Tensor&>().grad_fn())>;

// An activation that its node can compute again. The result may have another memory format than the activation.
class Recomputation {
 public:
  // Nothing where `x` must be kept. Takes the interpreter's lock where another node than this extension's made `x`.
  static std::optional<Recomputation> of(const at::Tensor& x);

  at::Tensor tensor() const;
  // Tells nodes of this extension apart.
  size_t node() const { return reinterpret_cast<size_t>(node_.get()); }
  bool is_compiled() const { return python_ == nullptr; }

 private:
  Recomputation(NodePointer node, std::shared_ptr<pybind11::object> python, size_t number)
      : node_(std::move(node)), python_(std::move(python)), number_(number) {}

  NodePointer node_;
  std::shared_ptr<pybind11::object> python_;  // the node, if it is one of Python
  size_t number_;
};

// Runs each chain on its input, or says why it cannot. Takes what autocast says, and copies to the layout that chains
// compute in and back, as memory_format.py describes. Without the interpreter's lock, as the next.
std::variant<std::vector<at::Tensor>, std::string> run_chains(const std::shared_ptr<ChainsCall>& call,
                                                              const std::vector<at::Tensor>& xs, Memory memory);

// Returns every target of a fusion.
std::vector<at::Tensor> run_fusion(const std::shared_ptr<FusionCall>& call, const std::vector<at::Tensor>& xs);

}  // namespace hrnet_fast::training
