// What nodes of autograd's graph share that are differentiable once.

#pragma once

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <vector>

namespace hrnet_fast::training {

// Code below autograd and autocast, which a node stands for.
struct Below {
  at::AutoDispatchBelowADInplaceOrView autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

// Whether a computation on tensors, of which some may be undefined, is recorded.
bool any_requires_grad(at::TensorList tensors);

// Puts a node that raises behind `results`, where their own differentiation is prepared: `sources` are what they depend
// on. A gradient of a result would be wrong in silence. Undefined tensors stay.
void differentiate_once(std::vector<at::Tensor>& results, const std::vector<at::Tensor>& sources);

}  // namespace hrnet_fast::training
