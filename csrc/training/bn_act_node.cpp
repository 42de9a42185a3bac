// The operator bn_act as a node of autograd's graph: see operator_nodes.h and hrnet_fast/ops/bn_act.py.

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <limits>

#include "conv_norm.h"
#include "once_differentiable.h"
#include "operator_nodes.h"

namespace hrnet_fast::training {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool are_plain(at::TensorList tensors) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet kPlain(
      {DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA,
       DispatchKey::ADInplaceOrView, DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA, DispatchKey::BackendSelect});
  const auto local = c10::impl::tls_local_dispatch_key_set();
  c10::DispatchKeySet keys = local.included_;
  for (const at::Tensor& t : tensors)
    if (t.defined()) keys = keys | t.key_set();
  return (keys - local.excluded_ - kPlain).highestFunctionalityKey() == DispatchKey::Undefined &&
         !at::impl::torch_function_mode_enabled();
}

std::vector<c10::IValue> dispatched(const char* name, std::vector<c10::IValue> arguments) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(arguments);
  return arguments;
}

namespace {

constexpr char kState[] = "state";

struct BnActState : torch::CustomClassHolder {
  at::Tensor affine;  // until it is saved
  bool relu = true, batch = true, has_residual = false;
  std::optional<at::ScalarType> weight, bias;  // their dtypes

  // Without a residual, the activation's sign follows from x and the affine.
  bool keeps_result() const { return has_residual && relu; }
};

at::MemoryFormat dense_format(const at::Tensor& x) {
  const bool last = x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

at::Tensor normalised(const at::Tensor& x, const at::Tensor& affine, const at::Tensor& residual, bool relu) {
  const OptionalTensor added = residual.defined() ? OptionalTensor(residual) : std::nullopt;
  return bn_act({{x, affine, added, std::nullopt, relu}})[0].contiguous(dense_format(x));
}

struct BnActFunction : torch::autograd::Function<BnActFunction> {
  // `tensors`: x, and of weight, bias and residual those that there are.
  static at::Tensor forward(AutogradContext* ctx, const c10::intrusive_ptr<BnActState>& state, at::TensorList tensors) {
    const Below below;
    ctx->saved_data[kState] = c10::IValue::make_capsule(state);
    const at::Tensor affine = std::move(state->affine), &x = tensors[0];
    at::Tensor out = normalised(x, affine, state->has_residual ? tensors.back() : at::Tensor(), state->relu);
    ctx->save_for_backward({x, affine, state->keeps_result() ? out : at::Tensor()});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto state = c10::static_intrusive_pointer_cast<BnActState>(ctx->saved_data[kState].toCapsule());
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &affine = saved[1], &grad = grads[0];
    size_t edge = 0;
    const bool want_x = ctx->needs_input_grad(edge++);
    const bool want_weight = state->weight && ctx->needs_input_grad(edge++);
    const bool want_bias = state->bias && ctx->needs_input_grad(edge++);
    const bool want_residual = state->has_residual && ctx->needs_input_grad(edge++);
    const bool keep = state->keeps_result() && (want_x || want_residual);
    const OptionalTensor out = state->keeps_result() ? OptionalTensor(saved[2]) : std::nullopt;
    variable_list found(2);   // one for each input, behind the one argument that is no tensor
    if (!are_plain(grads)) {  // batched gradients, other tensor classes
      const auto results =
          dispatched("hrnet_fast::bn_act_backward",
                     {grad, x, affine, out, state->relu, state->batch, want_x, want_weight || want_bias,
                      want_residual && state->keeps_result(), x.is_cuda() ? "cuda" : "cpu"});
      const at::Tensor sums = results[1].toTensor();
      if (want_x) found[1] = results[0].toTensor();
      if (state->weight) found.push_back(want_weight ? sums.select(0, 1).to(*state->weight) : at::Tensor());
      if (state->bias) found.push_back(want_bias ? sums.select(0, 0).to(*state->bias) : at::Tensor());
      const at::Tensor residual = state->keeps_result() ? results[2].toTensor() : grad;
      if (state->has_residual) found.push_back(want_residual ? residual : at::Tensor());
      return found;
    }
    {
      const Below below;
      BackwardSums sums;
      if (want_weight || want_bias || keep || (want_x && state->batch))
        sums = backward_sums({{grad, std::nullopt, x, affine, out, state->relu, keep}})[0];
      if (want_x) {
        const double count =
            state->batch ? static_cast<double>(x.numel() / x.size(1)) : std::numeric_limits<double>::infinity();
        found[1] = backward_input({{keep ? sums.masked : grad, x, affine, sums.sums, count, state->relu && !keep}})[0]
                       .contiguous(dense_format(x));
      }
      if (state->weight) found.push_back(want_weight ? cast(row_of(sums.sums, 1), *state->weight) : at::Tensor());
      if (state->bias) found.push_back(want_bias ? cast(row_of(sums.sums, 0), *state->bias) : at::Tensor());
      if (want_residual && keep) found.push_back(sums.masked.contiguous(dense_format(x)));
    }
    differentiate_once(found, {grad, x});
    if (state->has_residual && !(want_residual && keep)) found.push_back(want_residual ? grad : at::Tensor());
    return found;
  }
};

at::Tensor affine_of(const BnActCall& call) {
  const int64_t channels[] = {call.x.size(1)};
  const double momenta[] = {call.momentum}, eps[] = {call.eps};
  if (!call.batch)
    return running_affine(channels, call.weight, call.bias, call.running_mean, call.running_var, eps,
                          call.x.scalar_type() == at::kDouble);
  const at::Tensor made =
      batch_affine(call.x, channels, call.weight, call.bias, call.running_mean, call.running_var, momenta, eps)[0];
  for (const at::Tensor* moved : {&call.running_mean, &call.running_var})  // below autograd nothing else shows it
    if (moved->defined() && !moved->is_inference()) moved->unsafeGetTensorImpl()->bump_version();
  return made;
}

}  // namespace

std::optional<at::Tensor> bn_act_node(const BnActCall& call) {
  const at::Tensor tensors[] = {call.x, call.weight, call.bias, call.running_mean, call.running_var, call.residual};
  if (call.x.numel() == 0 || !are_plain(tensors)) return std::nullopt;
  if (any_requires_grad({call.running_mean, call.running_var})) return std::nullopt;
  RECORD_FUNCTION("hrnet_fast::bn_act", c10::ArrayRef<const c10::IValue>());
  const auto state = c10::make_intrusive<BnActState>();
  {
    const Below below;
    state->affine = affine_of(call);
  }
  variable_list inputs{call.x};
  for (const at::Tensor* t : {&call.weight, &call.bias, &call.residual})
    if (t->defined()) inputs.push_back(*t);
  if (!any_requires_grad(inputs)) {
    const Below below;
    return normalised(call.x, state->affine, call.residual, call.relu);
  }
  state->relu = call.relu;
  state->batch = call.batch;
  state->has_residual = call.residual.defined();
  if (call.weight.defined()) state->weight = call.weight.scalar_type();
  if (call.bias.defined()) state->bias = call.bias.scalar_type();
  return BnActFunction::apply(state, at::TensorList(inputs));
}

}  // namespace hrnet_fast::training
