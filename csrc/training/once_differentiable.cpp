// What nodes of autograd's graph share that are differentiable once: see once_differentiable.h.

#include "once_differentiable.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace hrnet_fast::training {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

struct DifferentiatedTwice : torch::autograd::Function<DifferentiatedTwice> {
  static variable_list forward(AutogradContext*, size_t count, at::TensorList tensors) {
    variable_list found;
    for (const at::Tensor& t : tensors.slice(0, count)) found.push_back(t.detach());
    return found;
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false, "trying to differentiate twice a function that was marked with @once_differentiable");
  }
};

}  // namespace

bool any_requires_grad(at::TensorList tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor& t : tensors)
    if (t.defined() && t.requires_grad()) return true;
  return false;
}

void differentiate_once(std::vector<at::Tensor>& results, const std::vector<at::Tensor>& sources) {
  if (!any_requires_grad(sources)) return;
  variable_list tensors;
  size_t count = 0;
  for (const auto* part : {static_cast<const std::vector<at::Tensor>*>(&results), &sources}) {
    for (const at::Tensor& t : *part)
      if (t.defined()) tensors.push_back(t);
    if (part == &results) count = tensors.size();
  }
  const variable_list behind = DifferentiatedTwice::apply(count, at::TensorList(tensors));
  auto next = behind.begin();
  for (at::Tensor& t : results)
    if (t.defined()) t = *next++;
}

}  // namespace hrnet_fast::training
