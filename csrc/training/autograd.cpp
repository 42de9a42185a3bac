// Chains and fusions as nodes of autograd's graph: see autograd.h.

#include "autograd.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <mutex>

#include "memory_format.h"
#include "once_differentiable.h"

namespace py = pybind11;

namespace hrnet_fast::training {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a node keeps besides tensors.
struct NodeState : torch::CustomClassHolder {
  std::vector<std::optional<Recomputation>> recomputations;  // of the inputs
  std::vector<uint32_t> versions;  // of the outputs, if they can be computed again: one changed in place cannot
  std::vector<at::ScalarType> given;
  int task = -1;     // the backward pass that the cache of a subclass belongs to
  std::mutex mutex;  // of the cache: two threads may go backward through one graph

  // Within one pass, torch.utils.checkpoint lets saved tensors be fetched only once.
  bool is_of_this_pass() {
    const int now = torch::autograd::get_current_graph_task_id(), before = task;
    task = now;
    return now == before;
  }
};

namespace {

constexpr char kState[] = "state";

template <typename State>
c10::intrusive_ptr<State> state_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<State>(ctx->saved_data[kState].toCapsule());
}

std::optional<at::ScalarType> autocast_dtype(const at::Tensor& x) {
  const auto kind = x.device().type();
  if (!at::autocast::is_autocast_enabled(kind) || x.scalar_type() == at::kDouble) return std::nullopt;
  return at::autocast::get_autocast_dtype(kind);
}

// The inputs of a node: the maps and the parameters that layers have.
variable_list inputs_of_node(const variable_list& xs, const variable_list& parameters) {
  variable_list found = xs;
  for (const at::Tensor& parameter : parameters)
    if (parameter.defined()) found.push_back(parameter);
  return found;
}

struct WantedGradients {
  std::vector<bool> xs, parameters;
};

// The gradients that a pass wants of a node's inputs; none of parameters that layers have not.
WantedGradients wanted(AutogradContext* ctx, size_t maps, const variable_list& parameters) {
  WantedGradients found;
  size_t edge = 0;
  while (edge < maps) found.xs.push_back(ctx->needs_input_grad(edge++));
  for (const at::Tensor& parameter : parameters)
    found.parameters.push_back(parameter.defined() && ctx->needs_input_grad(edge++));
  return found;
}

std::vector<std::optional<Recomputation>> recomputations_of(const std::vector<at::Tensor>& xs) {
  std::vector<std::optional<Recomputation>> found;
  for (const at::Tensor& x : xs) found.push_back(Recomputation::of(x));
  return found;
}

// A node's result, of gradients of `maps` maps and of all parameters: one for each input, behind the one argument that
// is no tensor; differentiable no further.
variable_list result_of_node(const variable_list& found, size_t maps, const variable_list& parameters,
                             const variable_list& grads) {
  variable_list result(1);
  for (size_t k = 0; k < found.size(); ++k)
    if (k < maps || parameters[k - maps].defined()) result.push_back(found[k]);
  differentiate_once(result, grads);
  return result;
}

}  // namespace

struct ChainsState : NodeState {
  std::shared_ptr<ChainsCall> call;
  Memory memory;
  std::optional<at::ScalarType> dtype;
  std::vector<bool> blocks;
  std::vector<Kept> cache;

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

struct ChainsFunction : torch::autograd::Function<ChainsFunction> {
  // `tensors`: see inputs_of_node.
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<ChainsState>& state,
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

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
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

  static at::Tensor recompute(AutogradContext* ctx, size_t number) {
    const auto state = state_of<ChainsState>(ctx);
    const std::lock_guard<std::mutex> lock(state->mutex);
    return state->recomputed(ctx).at(number).activations.back();
  }
};

struct FusionState : NodeState {
  std::shared_ptr<FusionCall> call;
  size_t targets = 0;
  variable_list cache;

  variable_list saved(AutogradContext* ctx) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!is_of_this_pass() || cache.empty()) cache = ctx->get_saved_variables();
    return cache;
  }
};

struct FusionFunction : torch::autograd::Function<FusionFunction> {
  // `tensors`: see inputs_of_node.
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<FusionState>& state,
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

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
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

  static at::Tensor recompute(AutogradContext* ctx, size_t number) {
    const auto state = state_of<FusionState>(ctx);
    return state->saved(ctx).at(state->call->kept() + number);
  }
};

namespace {

template <typename Function>
AutogradContext* context_in(const NodePointer& node) {
  auto* own = dynamic_cast<torch::autograd::CppNode<Function>*>(node.get());
  return own == nullptr ? nullptr : &own->ctx_;
}

AutogradContext* context_of(const NodePointer& node) {
  AutogradContext* found = context_in<ChainsFunction>(node);
  return found == nullptr ? context_in<FusionFunction>(node) : found;
}

std::shared_ptr<py::object> held(py::object object) {
  return {new py::object(std::move(object)), [](py::object* last) {
            if (!Py_IsInitialized()) return;
            const py::gil_scoped_acquire lock;
            delete last;
          }};
}

void attach(NodeState& state, const variable_list& outs) {
  for (const at::Tensor& out : outs) state.versions.push_back(out._version());
}

}  // namespace

std::optional<Recomputation> Recomputation::of(const at::Tensor& x) {
  const NodePointer node = x.grad_fn();
  if (!node) return std::nullopt;
  const size_t number = x.output_nr();
  if (AutogradContext* ctx = context_of(node)) {
    const auto& versions = state_of<NodeState>(ctx)->versions;
    if (number >= versions.size() || versions[number] != x._version()) return std::nullopt;
    return Recomputation(node, nullptr, number);
  }
  const py::gil_scoped_acquire lock;
  py::object python = py::cast(x).attr("grad_fn");
  const py::object versions = py::getattr(python, "output_versions", py::none());
  if (versions.is_none()) return std::nullopt;
  const py::object version = versions.attr("get")(number);
  if (version.is_none() || version.cast<uint32_t>() != x._version()) return std::nullopt;
  return Recomputation(node, held(std::move(python)), number);
}

at::Tensor Recomputation::tensor() const {
  if (python_ != nullptr) {
    const py::gil_scoped_acquire lock;
    return python_->attr("recompute")(*python_, number_).cast<at::Tensor>();
  }
  if (AutogradContext* ctx = context_in<ChainsFunction>(node_)) return ChainsFunction::recompute(ctx, number_);
  return FusionFunction::recompute(context_in<FusionFunction>(node_), number_);
}

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
