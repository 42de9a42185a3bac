// HRNetV2's head as a node of autograd's graph: see v2_head.h.

#include "memory_format.h"
#include "once_differentiable.h"
#include "recomputing_node.h"
#include "v2_head.h"

namespace hrnet_fast::training {

namespace {

struct V2HeadState : torch::CustomClassHolder {
  std::shared_ptr<V2HeadCall> call;
  std::vector<std::optional<Recomputation>> recomputations;  // of the maps
  double count = 0.0;
};

struct V2HeadFunction : torch::autograd::Function<V2HeadFunction> {
  // `tensors`: see inputs_of_node.
  static at::Tensor forward(AutogradContext* ctx, const c10::intrusive_ptr<V2HeadState>& state,
                            at::TensorList tensors) {
    ctx->saved_data[kState] = c10::IValue::make_capsule(state);
    const Below below;
    const size_t maps = state->recomputations.size();
    variable_list xs, saved;
    for (const at::Tensor& x : tensors.slice(0, maps)) xs.push_back(in_compute_format(x));
    V2HeadCall::Kept kept;
    const at::Tensor out = state->call->forward(xs, kept);
    state->count = kept.mixed.count;
    saved = {kept.mixed.y, kept.mixed.affine, kept.mix, kept.classifier};
    for (size_t k = 0; k < maps; ++k)
      if (!state->recomputations[k]) saved.push_back(xs[k]);
    ctx->save_for_backward(std::move(saved));
    return in_input_format(out, tensors[0]);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto state = state_of<V2HeadState>(ctx);
    const size_t maps = state->recomputations.size();
    const variable_list parameters = state->call->parameters();
    variable_list found;
    {
      const at::NoGradGuard no_grad;
      const variable_list saved = ctx->get_saved_variables();  // not below autograd: this may run a forward
      const V2HeadCall::Kept kept{{saved[0], saved[1], state->count}, saved[2], saved[3]};
      auto next = saved.begin() + 4;
      variable_list xs;
      for (const auto& again : state->recomputations) xs.push_back(again ? again->tensor() : *next++);
      const Below below;
      for (at::Tensor& x : xs) x = in_compute_format(x);
      const WantedGradients want = wanted(ctx, maps, parameters);
      found = state->call->backward(kept, xs, grads[0], want.xs, want.parameters);
    }
    return result_of_node(found, maps, parameters, grads);
  }
};

}  // namespace

at::Tensor run_v2_head(const std::shared_ptr<V2HeadCall>& call, const std::vector<at::Tensor>& xs) {
  const variable_list tensors = inputs_of_node(xs, call->parameters());
  if (any_requires_grad(tensors)) {
    const auto state = c10::make_intrusive<V2HeadState>();
    state->call = call;
    state->recomputations = recomputations_of(xs);
    return V2HeadFunction::apply(state, at::TensorList(tensors));
  }
  const Below below;
  variable_list inputs;
  for (const at::Tensor& x : xs) inputs.push_back(in_compute_format(x));
  V2HeadCall::Kept kept;
  return in_input_format(call->forward(inputs, kept), xs[0]);
}

}  // namespace hrnet_fast::training
