// Notices changes of modules' tensors: see tensor_versions.h.
//
// A network has some thousands of tensors and dictionaries, which are seldom in the processor's caches when a call
// begins. Waiting for memory takes most of the time, so what is compared soon is fetched while other things are.

#include "tensor_versions.h"

#include <torch/csrc/autograd/python_variable.h>

#include <cstring>

#include "dictionary_tag.h"

namespace py = pybind11;

namespace hrnet_fast::training {

namespace {

constexpr size_t kAhead = 12;  // how many tensors or dictionaries are fetched ahead

void fetch([[maybe_unused]] const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address);
#endif
}

}  // namespace

TensorVersions::TensorVersions(const py::iterable& dictionaries) {
  for (const py::handle& given : dictionaries) {
    Dictionary made{py::reinterpret_borrow<py::dict>(given), {}};
    const py::dict own = made.own.attr("copy")();  // at once: other threads may add to it
    for (const auto& [name, value] : own) {
      made.values.push_back(py::reinterpret_borrow<py::object>(value));
      if (THPVariable_Check(value.ptr())) tensors_.push_back(State::of(value.ptr()));
    }
    dictionaries_.push_back(std::move(made));
  }
}

TensorVersions::State TensorVersions::State::of(PyObject* object) {
  c10::TensorImpl* impl = THPVariable_Unpack(object).unsafeGetTensorImpl();
  State found{object, impl, nullptr, nullptr, nullptr, 0, !impl->is_inference()};
  if (found.counted) found.version = impl->version_counter().current_version();
  // The counter's place, which its handle does not tell, for prefetching.
  static_assert(sizeof(c10::VariableVersion) == sizeof(found.counter));
  std::memcpy(&found.counter, &impl->version_counter(), sizeof(found.counter));
  if (impl->has_storage()) {
    c10::StorageImpl* storage = impl->unsafe_storage().unsafeGetStorageImpl();
    found.storage = storage;
    if (storage != nullptr)  // an address alone, which is right for tensors without data too
      found.address = static_cast<const char*>(storage->_mutable_data_ptr_no_checks().get()) + impl->storage_offset();
  }
  return found;
}

bool TensorVersions::State::unchanged() const {
  const State now = of(object);
  return now.tensor == tensor && now.address == address && now.version == version;
}

void TensorVersions::State::prefetch() const {
  fetch(object);
  fetch(tensor);  // the storage and the version counter; behind them, the offset and the flags
  fetch(reinterpret_cast<const char*>(tensor) + sizeof(c10::TensorImpl) - 1);
  fetch(storage);
  fetch(counter);
}

bool TensorVersions::Dictionary::unchanged() {
  const uint64_t now = dictionary_tag(own.ptr());
  if (now != 0 && now == tag) return true;
  py::ssize_t at = 0;
  size_t k = 0;
  PyObject *key, *value;
  while (PyDict_Next(own.ptr(), &at, &key, &value))
    if (k == values.size() || values[k++].ptr() != value) return false;
  if (k != values.size()) return false;
  tag = now;
  return true;
}

bool TensorVersions::unchanged() {
  for (size_t k = 0; k < dictionaries_.size(); ++k) {
    if (k + kAhead < dictionaries_.size()) fetch(dictionaries_[k + kAhead].own.ptr());
    if (!dictionaries_[k].unchanged()) return false;
  }
  for (size_t k = 0; k < tensors_.size(); ++k) {
    if (k + kAhead < tensors_.size()) tensors_[k + kAhead].prefetch();
    if (!tensors_[k].unchanged()) return false;
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

void TensorVersions::clear() {
  tensors_.clear();
  dictionaries_.clear();
}

}  // namespace hrnet_fast::training
