// The module hrnet_fast._C: build information now, the registration of the compiled operators as they are added.
//
// Kept free of operator code, so that what was built can be asked even where no operator applies.

#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["cplusplus"] = std::to_string(__cplusplus);
#if defined(HRNET_FAST_WITH_CUDA)
  info["cuda"] = "compiled in";
#else
  info["cuda"] = "none";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "hrnet_fast's compiled extension";
  m.def("build_info", &build_info, "What this extension was built with, by name.");
}
