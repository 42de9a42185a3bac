// Notices changes of modules' tensors: see tensor_versions.h.

#include "tensor_versions.h"

#include <torch/csrc/autograd/python_variable.h>

namespace py = pybind11;

namespace hrnet_fast::training {

TensorVersions::TensorVersions(const py::iterable& dictionaries) {
  for (const py::handle& given : dictionaries) {
    Dictionary made{py::reinterpret_borrow<py::dict>(given), {}, {}};
    const py::dict own = made.own.attr("copy")();  // at once: other threads may add to it
    for (const auto& [name, value] : own) {
      made.values.push_back(py::reinterpret_borrow<py::object>(value));
      made.states.push_back(state(value.ptr()));
    }
    dictionaries_.push_back(std::move(made));
  }
}

TensorVersions::State TensorVersions::state(PyObject* value) {
  if (!THPVariable_Check(value)) return {};
  const at::Tensor& tensor = THPVariable_Unpack(value);
  // Inference tensors have no version counter.
  return {tensor.unsafeGetTensorImpl(), tensor.has_storage() ? tensor.const_data_ptr() : nullptr,
          tensor.is_inference() ? 0U : static_cast<uint32_t>(tensor._version())};
}

bool TensorVersions::unchanged() const {
  for (const Dictionary& dictionary : dictionaries_) {
    py::ssize_t at = 0;
    size_t k = 0;
    PyObject *key, *now;
    while (PyDict_Next(dictionary.own.ptr(), &at, &key, &now)) {
      if (k == dictionary.values.size() || dictionary.values[k].ptr() != now) return false;
      if (!(state(now) == dictionary.states[k++])) return false;
    }
    if (k != dictionary.values.size()) return false;
  }
  return true;
}

int TensorVersions::traverse(visitproc visit, void* arg) const {
  for (const Dictionary& dictionary : dictionaries_) {
    Py_VISIT(dictionary.own.ptr());
    for (const py::object& value : dictionary.values) Py_VISIT(value.ptr());
  }
  return 0;
}

}  // namespace hrnet_fast::training
