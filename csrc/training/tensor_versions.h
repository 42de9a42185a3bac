// Notices changes of modules' tensors between calls: hrnet_fast/inference/weight_versions.py in C++.

#pragma once

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
  bool unchanged() const;

  // Python's garbage collector follows the references to modules and tensors.
  int traverse(visitproc visit, void* arg) const;
  void clear() { dictionaries_.clear(); }

 private:
  struct State {
    const void* tensor = nullptr;  // of other values
    const void* address = nullptr;
    uint32_t version = 0;
    bool operator==(const State& other) const {
      return tensor == other.tensor && address == other.address && version == other.version;
    }
  };
  struct Dictionary {
    pybind11::dict own;
    std::vector<pybind11::object> values;  // in its order
    std::vector<State> states;
  };
  static State state(PyObject* tensor);

  std::vector<Dictionary> dictionaries_;
};

}  // namespace hrnet_fast::training
