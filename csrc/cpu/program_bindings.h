// Registration of the inference engine's classes in hrnet_fast._C.

#pragma once

#include <pybind11/pybind11.h>

namespace hrnet_fast::cpu {
void bind_program(pybind11::module_& m);
}  // namespace hrnet_fast::cpu
