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
      made.states.push_back(THPVariable_Check(value.ptr()) ? state(value.ptr()) : State{});
    }
    dictionaries_.push_back(std::move(made));
  }
}

TensorVersions::State TensorVersions::state(PyObject* tensor) {
  c10::TensorImpl* impl = THPVariable_Unpack(tensor).unsafeGetTensorImpl();
  State found{impl, nullptr, impl->is_inference() ? 0U : impl->version_counter().current_version()};
  if (impl->has_storage()) {
    c10::StorageImpl* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    if (storage != nullptr)  // an address alone, which is right for tensors without data too
      found.address = static_cast<const char*>(storage->_mutable_data_ptr_no_checks().get()) + impl->storage_offset();
  }
  return found;
}

bool TensorVersions::unchanged() const {
  for (const Dictionary& dictionary : dictionaries_) {
    py::ssize_t at = 0;
    size_t k = 0;
    PyObject *key, *now;
    while (PyDict_Next(dictionary.own.ptr(), &at, &key, &now)) {
      if (k == dictionary.values.size() || dictionary.values[k].ptr() != now) return false;
      const State& then = dictionary.states[k++];
      if (then.tensor != nullptr && !(state(now) == then)) return false;
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
