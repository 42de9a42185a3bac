// Registration of fused training's classes in hrnet_fast._C.

#pragma once

#include <pybind11/pybind11.h>

namespace hrnet_fast::training {
void bind_training(pybind11::module_& m);
}  // namespace hrnet_fast::training
