// What the nodes of chains and of fusions share: both can compute their outputs again for a consumer.

#pragma once

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/custom_class.h>

#include <mutex>

#include "autograd.h"

namespace hrnet_fast::training {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node keeps besides tensors.
struct NodeState : torch::CustomClassHolder {
  std::vector<std::optional<Recomputation>> recomputations;  // of the inputs
  std::vector<uint32_t> versions;  // of the outputs, if they can be computed again: one changed in place cannot
  int task = -1;     // the backward pass that the cache of a subclass belongs to
  std::mutex mutex;  // of the cache: two threads may go backward through one graph

  // The output `number`, from what was saved.
  virtual at::Tensor recompute(AutogradContext* ctx, size_t number) = 0;

  // Within one pass, torch.utils.checkpoint lets saved tensors be fetched only once.
  bool is_of_this_pass() {
    const int now = torch::autograd::get_current_graph_task_id(), before = task;
    task = now;
    return now == before;
  }
};

constexpr char kState[] = "state";

template <typename State>
c10::intrusive_ptr<State> state_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<State>(ctx->saved_data[kState].toCapsule());
}

struct ChainsState;
struct FusionState;

// `tensors` of both: see inputs_of_node.
struct ChainsFunction : torch::autograd::Function<ChainsFunction> {
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<ChainsState>& state,
                               at::TensorList tensors);
  static variable_list backward(AutogradContext* ctx, const variable_list& grads);
};

struct FusionFunction : torch::autograd::Function<FusionFunction> {
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<FusionState>& state,
                               at::TensorList tensors);
  static variable_list backward(AutogradContext* ctx, const variable_list& grads);
};

// The inputs of a node: the maps and the parameters that layers have.
variable_list inputs_of_node(const variable_list& xs, const variable_list& parameters);

struct WantedGradients {
  std::vector<bool> xs, parameters;
};

// The gradients that a pass wants of a node's inputs; none of parameters that layers have not.
WantedGradients wanted(AutogradContext* ctx, size_t maps, const variable_list& parameters);

// A node's result, of gradients of `maps` maps and of all parameters: one for each input, behind the one argument that
// is no tensor; differentiable no further.
variable_list result_of_node(const variable_list& found, size_t maps, const variable_list& parameters,
                             const variable_list& grads);

std::vector<std::optional<Recomputation>> recomputations_of(const std::vector<at::Tensor>& xs);

// Lets consumers recompute these outputs, as long as they are unchanged.
void attach(NodeState& state, const variable_list& outs);

}  // namespace hrnet_fast::training
