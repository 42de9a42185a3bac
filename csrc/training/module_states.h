// Notices changes of modules' structure between calls: hrnet_fast/training/structure_cache.py in C++.

#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace hrnet_fast::training {

// Classes, methods that tools replace at run time, and attributes of modules, as they were when this was made.
// Containers are compared by a copy; parameters, buffers and the names in `apart` are left out.
class ModuleStates {
 public:
  ModuleStates(const pybind11::iterable& modules, const pybind11::tuple& apart);

  // Whether all of them are as they were. An attribute that cannot be compared counts as changed.
  bool unchanged() const;

  // Python's garbage collector follows the references to modules.
  int traverse(visitproc visit, void* arg) const;
  void clear() { states_.clear(); }

 private:
  struct Attribute {
    pybind11::object name, value;
    bool copied, apart, empty;
  };
  struct State {
    pybind11::object module, kind, forward, conv_forward;
    pybind11::dict own;
    std::vector<Attribute> attributes;  // in the order of the dictionary
  };
  static bool in_order(const State& state);
  bool by_name(const State& state) const;

  pybind11::tuple apart_;
  std::vector<State> states_;
};

}  // namespace hrnet_fast::training
