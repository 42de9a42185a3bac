// Notices changes of modules' tensors between calls: hrnet_fast/inference/weight_versions.py in C++.

#pragma once

#include <c10/core/TensorImpl.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace hrnet_fast::training {

// Identities, version counters and addresses of the tensors in modules' dictionaries (parameters, buffers, modules), as
// they were when this was made. Other values are compared by identity.
class TensorVersions {
 public:
  explicit TensorVersions(const pybind11::iterable& dictionaries);

  // Whether all of them are as they were. Writes through `.data` move no version counter and go unnoticed.
  bool unchanged();

  // Python's garbage collector follows the references to modules and tensors.
  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  // One tensor. Its object is alive while its dictionary's values are; what else it points to may be gone, and is for
  // comparisons and prefetching alone.
  struct State {
    PyObject* object;
    const c10::TensorImpl* tensor;
    const void* storage;
    const void* counter;
    const void* address;
    uint32_t version;
    bool counted;  // inference tensors have no version

    static State of(PyObject* object);
    bool unchanged() const;
    void prefetch() const;
  };
  struct Dictionary {
    pybind11::dict own;
    std::vector<pybind11::object> values;  // in its order
    uint64_t tag = 0;                      // what Python gives a dictionary at every change, where it does

    bool unchanged();
  };

  std::vector<Dictionary> dictionaries_;
  std::vector<State> tensors_;  // of all dictionaries
};

}  // namespace hrnet_fast::training
