// Residual chains as a node of autograd's graph: see autograd.h.

#include <ATen/autocast_mode.h>

#include <algorithm>

#include "memory_format.h"
#include "once_differentiable.h"
#include "recomputing_node.h"

namespace hrnet_fast::training {

struct ChainsState : NodeState {
  std::shared_ptr<ChainsCall> call;
  Memory memory;
  std::optional<at::ScalarType> dtype;
  std::vector<at::ScalarType> given;  // dtypes of the inputs
  std::vector<bool> blocks;
  std::vector<Kept> cache;

  at::Tensor recompute(AutogradContext* ctx, size_t number) override {
    const std::lock_guard<std::mutex> lock(mutex);
    return recomputed(ctx).at(number).activations.back();
  }

  // All that backward needs: a consumer's backward and the chains' own do.
  std::vector<Kept>& recomputed(AutogradContext* ctx) {
    if (is_of_this_pass() && !cache.empty()) return cache;
    // Not below autograd: fetching saved tensors may run a forward (torch.utils.checkpoint).
    const at::NoGradGuard no_grad;
    const variable_list saved = ctx->get_saved_variables();
    auto next = saved.begin();
    const auto take = [&](size_t n) {
      const variable_list part(next, next + n);
      next += n;
      return part;
    };
    const auto kept = take(call->kept()), outs = take(memory == Memory::kFast ? recomputations.size() : 0);
    std::vector<at::Tensor> xs;
    for (const auto& again : recomputations) xs.push_back(again ? again->tensor() : *next++);
    const Below below;
    for (size_t k = 0; k < xs.size(); ++k)
      if (recomputations[k]) xs[k] = to_input(xs[k], dtype);
    cache = call->recompute(kept, xs, variable_list(next, saved.end()), outs);
    return cache;
  }
};

variable_list ChainsFunction::forward(AutogradContext* ctx, const c10::intrusive_ptr<ChainsState>& state,
                                      at::TensorList tensors) {
  // A branch that nothing uses has no gradient; nor have its parameters, as in plain modules.
  ctx->set_materialize_grads(false);
  ctx->saved_data[kState] = c10::IValue::make_capsule(state);
  const Below below;
  const size_t chains = state->recomputations.size();
  std::vector<at::Tensor> xs;
  for (const at::Tensor& x : tensors.slice(0, chains)) {
    state->given.push_back(x.scalar_type());
    xs.push_back(to_input(x, state->dtype));
  }
  auto [outs, saved] = state->call->forward(xs, state->memory, state->blocks);
  if (state->memory == Memory::kFast) saved.insert(saved.end(), outs.begin(), outs.end());
  for (size_t k = 0; k < chains; ++k)
    if (!state->recomputations[k]) saved.push_back(xs[k]);
  const variable_list weights = state->call->weights();
  saved.insert(saved.end(), weights.begin(), weights.end());
  ctx->save_for_backward(std::move(saved));
  for (size_t k = 0; k < chains; ++k) outs[k] = in_input_format(outs[k], tensors[k]);
  return outs;
}

variable_list ChainsFunction::backward(AutogradContext* ctx, const variable_list& grads) {
  const auto state = state_of<ChainsState>(ctx);
  const size_t n = grads.size();
  const variable_list parameters = state->call->parameters();
  variable_list found;
  {
    const WantedGradients want = wanted(ctx, n, parameters);
    std::vector<Kept> kept;
    {
      const std::lock_guard<std::mutex> lock(state->mutex);
      kept = std::move(state->recomputed(ctx));
      state->cache.clear();
    }
    const Below below;
    found = state->call->backward(std::move(kept), grads, want.xs, want.parameters);
    for (size_t k = 0; k < n; ++k)
      if (found[k].defined()) found[k] = found[k].to(state->given[k]);
  }
  return result_of_node(found, n, parameters, grads);
}

namespace {

std::optional<at::ScalarType> autocast_dtype(const at::Tensor& x) {
  const auto kind = x.device().type();
  if (!at::autocast::is_autocast_enabled(kind) || x.scalar_type() == at::kDouble) return std::nullopt;
  return at::autocast::get_autocast_dtype(kind);
}

}  // namespace

std::variant<std::vector<at::Tensor>, std::string> run_chains(const std::shared_ptr<ChainsCall>& call,
                                                              const std::vector<at::Tensor>& xs, Memory memory) {
  const auto dtype = autocast_dtype(xs[0]);
  const auto is_other = [&](const at::Tensor& x) { return x.scalar_type() != *dtype; };
  if (dtype && std::any_of(xs.begin(), xs.end(), is_other) && call->adds_input())
    return "the first shortcut adds a float32 input to half precision";
  if (!dtype)
    for (const at::Tensor& x : xs)
      if (!call->computes_in(x.scalar_type())) return "weights and input differ in dtype";
  std::vector<bool> blocks;
  for (size_t k = 0; k < xs.size(); ++k)
    blocks.push_back(!dtype && call->normalises_batches(k) && sums_by_channel_blocks(xs[k]));
  const variable_list tensors = inputs_of_node(xs, call->parameters());
  if (any_requires_grad(tensors)) {
    const auto state = c10::make_intrusive<ChainsState>();
    state->recomputations = recomputations_of(xs);
    state->call = call;
    state->memory = memory;
    state->dtype = dtype;
    state->blocks = blocks;
    auto outs = ChainsFunction::apply(state, at::TensorList(tensors));
    attach(*state, outs);
    return outs;
  }
  const Below below;
  std::vector<at::Tensor> inputs;
  for (const at::Tensor& x : xs) inputs.push_back(to_input(x, dtype));
  auto outs = call->run(inputs, blocks);
  for (size_t k = 0; k < xs.size(); ++k) outs[k] = in_input_format(outs[k], xs[k]);
  return outs;
}

}  // namespace hrnet_fast::training
