// The operator fuse_sum as a node of autograd's graph: see operator_nodes.h and hrnet_fast/ops/fuse_sum.py.

#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "../../kernels/cuda/resample.h"
#include "conv_norm.h"
#include "memory_format.h"
#include "once_differentiable.h"
#include "operator_nodes.h"

namespace hrnet_fast::training {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

constexpr char kState[] = "state";

struct FuseSumState : torch::CustomClassHolder {
  std::vector<int64_t> sizes;  // (height, width) of every term
  int64_t mode = 0;
  bool relu = true;
  at::MemoryFormat format = at::MemoryFormat::Contiguous;  // of the result
};

struct FuseSumFunction : torch::autograd::Function<FuseSumFunction> {
  // `tensors`: the terms, then their scales, then their shifts, without absent ones.
  static at::Tensor forward(AutogradContext* ctx, const c10::intrusive_ptr<FuseSumState>& state,
                            const FuseSumCall& call, at::TensorList) {
    const Below below;
    ctx->saved_data[kState] = c10::IValue::make_capsule(state);
    at::Tensor out = fuse_sum(call.xs, call.scales, call.shifts, call.size, call.mode, call.relu);
    state->mode = call.mode;
    state->relu = call.relu;
    state->format = format_of(out);
    // The result is needed where ReLU was, and a term's values for its scale's gradient alone.
    variable_list saved{call.relu ? out : at::Tensor()};
    for (size_t k = 0; k < call.xs.size(); ++k) {
      const at::Tensor &x = call.xs[k], &scale = call.scales[k];
      state->sizes.insert(state->sizes.end(), {x.size(2), x.size(3)});
      saved.push_back(scale.defined() && (scale.requires_grad() || call.shifts[k].requires_grad()) ? x : at::Tensor());
    }
    saved.insert(saved.end(), call.scales.begin(), call.scales.end());
    ctx->save_for_backward(std::move(saved));
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto state = c10::static_intrusive_pointer_cast<FuseSumState>(ctx->saved_data[kState].toCapsule());
    const variable_list saved = ctx->get_saved_variables();
    const size_t n = state->sizes.size() / 2;
    const variable_list xs(saved.begin() + 1, saved.begin() + 1 + n), scales(saved.begin() + 1 + n, saved.end());
    size_t affines = 0;
    for (const at::Tensor& scale : scales) affines += scale.defined();
    std::vector<int64_t> wanted(2 * n, 0);
    for (size_t k = 0, edge = n; k < n; ++k) {
      wanted[k] = ctx->needs_input_grad(k);
      if (!scales[k].defined()) continue;
      wanted[n + k] = ctx->needs_input_grad(edge) || ctx->needs_input_grad(edge + affines);
      ++edge;
    }
    variable_list found(2);  // one for each input, behind the two arguments that are no tensors
    if (!are_plain(grads)) return dispatched_backward(*state, grads[0], saved, wanted);
    {
      const Below below;
      at::Tensor grad = grads[0], out = saved[0];
      if (!state->relu) out = grad = grad.contiguous(state->format);  // only its shape and layout are read
      const auto given = fuse_sum_backward(grad, out, xs, scales, state->sizes, state->mode, state->relu, wanted);
      for (size_t k = 0; k < given.size(); ++k)
        if (k < n || scales[k % n].defined()) found.push_back(given[k]);
    }
    differentiate_once(found, saved);
    differentiate_once(found, grads);
    return found;
  }

  // Of batched gradients and other tensor classes. The operator takes empty tensors for absent ones.
  static variable_list dispatched_backward(const FuseSumState& state, at::Tensor grad, const variable_list& saved,
                                           const std::vector<int64_t>& wanted) {
    const size_t n = state.sizes.size() / 2;
    if (!state.relu) grad = grad.contiguous(state.format);
    const at::Tensor absent = grad.new_empty({0});
    c10::List<at::Tensor> xs, scales;
    for (size_t k = 0; k < n; ++k) {
      xs.push_back(saved[1 + k].defined() ? saved[1 + k] : absent);
      scales.push_back(saved[1 + n + k].defined() ? saved[1 + n + k] : absent);
    }
    const auto mode = static_cast<Resample>(state.mode);
    const auto given =
        dispatched("hrnet_fast::fuse_sum_backward",
                   {grad, state.relu ? saved[0] : grad, xs, scales, state.sizes,
                    mode == Resample::kNearest ? "nearest" : "bilinear", mode == Resample::kBilinearAligned, state.relu,
                    wanted, grad.is_cuda() ? "cuda" : "cpu"})[0]
            .toTensorVector();
    variable_list found(2);
    for (size_t k = 0; k < given.size(); ++k)
      if (k < n || saved[1 + n + k % n].defined())
        found.push_back(wanted[k < n ? k : n + k % n] ? given[k] : at::Tensor());
    return found;
  }
};

}  // namespace

std::optional<at::Tensor> fuse_sum_node(const FuseSumCall& call) {
  variable_list inputs = call.xs;
  for (const auto* part : {&call.scales, &call.shifts})
    for (const at::Tensor& t : *part)
      if (t.defined()) inputs.push_back(t);
  if (!are_plain(inputs)) return std::nullopt;
  RECORD_FUNCTION("hrnet_fast::fuse_sum", c10::ArrayRef<const c10::IValue>());
  if (any_requires_grad(inputs))
    return FuseSumFunction::apply(c10::make_intrusive<FuseSumState>(), call, at::TensorList(inputs));
  const Below below;
  return fuse_sum(call.xs, call.scales, call.shifts, call.size, call.mode, call.relu);
}

}  // namespace hrnet_fast::training
