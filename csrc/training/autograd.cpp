// What the nodes of chains and of fusions share, and how one computes another's output again: see autograd.h.

#include <torch/csrc/utils/pybind.h>

#include "once_differentiable.h"
#include "recomputing_node.h"

namespace py = pybind11;

namespace hrnet_fast::training {

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

}  // namespace

variable_list inputs_of_node(const variable_list& xs, const variable_list& parameters) {
  variable_list found = xs;
  for (const at::Tensor& parameter : parameters)
    if (parameter.defined()) found.push_back(parameter);
  return found;
}

WantedGradients wanted(AutogradContext* ctx, size_t maps, const variable_list& parameters) {
  WantedGradients found;
  size_t edge = 0;
  while (edge < maps) found.xs.push_back(ctx->needs_input_grad(edge++));
  for (const at::Tensor& parameter : parameters)
    found.parameters.push_back(parameter.defined() && ctx->needs_input_grad(edge++));
  return found;
}

variable_list result_of_node(const variable_list& found, size_t maps, const variable_list& parameters,
                             const variable_list& grads) {
  variable_list result(1);
  for (size_t k = 0; k < found.size(); ++k)
    if (k < maps || parameters[k - maps].defined()) result.push_back(found[k]);
  differentiate_once(result, grads);
  return result;
}

std::vector<std::optional<Recomputation>> recomputations_of(const std::vector<at::Tensor>& xs) {
  std::vector<std::optional<Recomputation>> found;
  for (const at::Tensor& x : xs) found.push_back(Recomputation::of(x));
  return found;
}

void attach(NodeState& state, const variable_list& outs) {
  for (const at::Tensor& out : outs) state.versions.push_back(out._version());
}

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
  AutogradContext* ctx = context_of(node_);
  return state_of<NodeState>(ctx)->recompute(ctx, number_);
}

}  // namespace hrnet_fast::training
