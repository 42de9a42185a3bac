// Parameters and buffers that a captured step writes to: hrnet_fast/training/tensor_list.py in C++.

#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace hrnet_fast::training {

// Tensors, with their addresses and whether they required gradients when this was made. What it asks of them it asks of
// the Python objects' present tensors, which torch.utils.swap_tensors replaces.
class TensorList {
 public:
  explicit TensorList(pybind11::list tensors);

  bool have_same_memory() const;
  bool require_same_gradients() const;
  // Whether each tensor's gradient is the given one, or None.
  bool have_gradients(const pybind11::list& gradients) const;
  // Says that something wrote to them; inference tensors have no version.
  void increment_versions() const;

  // Python's garbage collector follows the references to tensors.
  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  pybind11::list tensors_;
  std::vector<const void*> addresses_;
  std::vector<bool> trained_;
};

}  // namespace hrnet_fast::training
