// A fusion as a node of autograd's graph: see autograd.h.

#include "memory_format.h"
#include "once_differentiable.h"
#include "recomputing_node.h"

namespace hrnet_fast::training {

struct FusionState : NodeState {
  std::shared_ptr<FusionCall> call;
  size_t targets = 0;
  variable_list cache;

  variable_list saved(AutogradContext* ctx) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!is_of_this_pass() || cache.empty()) cache = ctx->get_saved_variables();
    return cache;
  }

  at::Tensor recompute(AutogradContext* ctx, size_t number) override { return saved(ctx).at(call->kept() + number); }
};

variable_list FusionFunction::forward(AutogradContext* ctx, const c10::intrusive_ptr<FusionState>& state,
                                      at::TensorList tensors) {
  // A target that nothing uses has no gradient; nor have the parameters of it alone, as in plain modules.
  ctx->set_materialize_grads(false);
  ctx->saved_data[kState] = c10::IValue::make_capsule(state);
  const Below below;
  const size_t sources = state->recomputations.size();
  auto [outs, saved] = state->call->forward(tensors.slice(0, sources).vec());
  state->targets = outs.size();
  saved.insert(saved.end(), outs.begin(), outs.end());
  for (size_t k = 0; k < sources; ++k)
    if (!state->recomputations[k]) saved.push_back(tensors[k]);
  const variable_list weights = state->call->weights();
  saved.insert(saved.end(), weights.begin(), weights.end());
  ctx->save_for_backward(std::move(saved));
  return outs;
}

variable_list FusionFunction::backward(AutogradContext* ctx, const variable_list& grads) {
  const auto state = state_of<FusionState>(ctx);
  const size_t sources = state->recomputations.size();
  const variable_list parameters = state->call->parameters();
  variable_list found;
  {
    const at::NoGradGuard no_grad;
    const variable_list saved = state->saved(ctx);  // not below autograd: this may run a forward
    const auto outs_begin = saved.begin() + state->call->kept(), outs_end = outs_begin + state->targets;
    const variable_list outs(outs_begin, outs_end);
    auto next = outs_end;
    std::vector<at::Tensor> xs;
    for (const auto& again : state->recomputations) xs.push_back(again ? again->tensor() : *next++);
    const Below below;
    for (size_t k = 0; k < sources; ++k)
      if (state->recomputations[k]) xs[k] = xs[k].contiguous(format_of(outs[0]));
    const WantedGradients want = wanted(ctx, sources, parameters);
    found = state->call->backward({saved.begin(), outs_begin}, xs, outs, grads, want.xs, want.parameters);
    const std::lock_guard<std::mutex> lock(state->mutex);
    state->cache.clear();
  }
  return result_of_node(found, sources, parameters, grads);
}

std::vector<at::Tensor> run_fusion(const std::shared_ptr<FusionCall>& call, const std::vector<at::Tensor>& xs) {
  const variable_list tensors = inputs_of_node(xs, call->parameters());
  if (any_requires_grad(tensors)) {
    const auto state = c10::make_intrusive<FusionState>();
    state->recomputations = recomputations_of(xs);
    state->call = call;
    auto outs = FusionFunction::apply(state, at::TensorList(tensors));
    if (is_converted(xs[0])) attach(*state, outs);  // chains convert their layout and would keep those copies
    return outs;
  }
  const Below below;
  return call->run(xs);
}

}  // namespace hrnet_fast::training
