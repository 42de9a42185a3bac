// Parameters and buffers that a captured step writes to: see tensor_list.h.
//
// A replayed step examines some hundreds of tensors. As attributes of Python objects they take longer than the replay.

#include "tensor_list.h"

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

namespace py = pybind11;

namespace hrnet_fast::training {
namespace {

const at::Tensor& tensor_of(const py::handle& object) {
  if (!THPVariable_Check(object.ptr())) throw py::type_error("TensorList: an entry is not a tensor");
  return THPVariable_Unpack(object.ptr());
}

}  // namespace

TensorList::TensorList(py::list tensors) : tensors_(std::move(tensors)) {
  for (const py::handle& object : tensors_) {
    const at::Tensor& tensor = tensor_of(object);
    addresses_.push_back(tensor.const_data_ptr());
    trained_.push_back(tensor.requires_grad());
  }
}

bool TensorList::have_same_memory() const {
  size_t k = 0;
  for (const py::handle& object : tensors_)
    if (tensor_of(object).const_data_ptr() != addresses_[k++]) return false;
  return true;
}

bool TensorList::require_same_gradients() const {
  size_t k = 0;
  for (const py::handle& object : tensors_)
    if (tensor_of(object).requires_grad() != trained_[k++]) return false;
  return true;
}

bool TensorList::have_gradients(const py::list& gradients) const {
  if (gradients.size() != tensors_.size()) return false;
  size_t k = 0;
  for (const py::handle& object : tensors_) {
    const py::handle expected = gradients[k++];
    const at::Tensor& own = tensor_of(object).grad();
    if (expected.is_none() ? own.defined() : !own.is_same(tensor_of(expected))) return false;
  }
  return true;
}

void TensorList::increment_versions() const {
  for (const py::handle& object : tensors_) {
    const at::Tensor& tensor = tensor_of(object);
    if (!tensor.is_inference()) torch::autograd::impl::bump_version(tensor);
  }
}

int TensorList::traverse(visitproc visit, void* arg) const {
  Py_VISIT(tensors_.ptr());
  return 0;
}

void TensorList::clear() { tensors_ = py::list(); }

}  // namespace hrnet_fast::training
