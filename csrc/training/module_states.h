// Notices changes of modules' structure between calls: hrnet_fast/training/structure_cache.py in C++.

#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace hrnet_fast::training {

// Classes, methods that tools replace at run time, and attributes of modules, as they were when this was made.
// Containers are compared by a copy; parameters, buffers and the names in `apart` are left out. The root, which may
// hold this, is not referenced.
class ModuleStates {
 public:
  ModuleStates(const pybind11::handle& root, const pybind11::iterable& others, const pybind11::tuple& apart);

  // Whether all of them are as they were. An attribute that cannot be compared counts as changed.
  bool unchanged(const pybind11::handle& root);

  // Python's garbage collector follows the references to modules.
  int traverse(visitproc visit, void* arg) const;
  void clear() {
    states_.clear();
    kinds_.clear();
  }

 private:
  struct Attribute {
    pybind11::object name, value;
    bool copied, apart, empty;
  };
  // A container in a module's attributes: the object, what it held, and its state when it was last compared.
  struct Container {
    PyObject* now;
    size_t attribute;
    uint64_t tag;
  };
  struct State {
    pybind11::object module, kind;      // no module for the root
    std::vector<Attribute> attributes;  // in the order of the module's dictionary
    uint64_t tag = 0;                   // of the dictionary, when it was last compared
    std::vector<Container> containers;  // as they were then
  };
  struct Kind {
    pybind11::object kind, forward, conv_forward;
  };
  State state_of(const pybind11::handle& module);
  static bool in_order(State& state, PyObject* own);
  static bool same_containers(State& state, PyObject* own);
  bool by_name(const State& state, PyObject* own) const;
  bool unchanged(State& state, const pybind11::handle& module) const;

  pybind11::tuple apart_;
  std::vector<State> states_;  // the root's first
  std::vector<Kind> kinds_;    // of the modules, each once
};

}  // namespace hrnet_fast::training
