// Notices changes of modules' structure: see module_states.h.

#include "module_states.h"

#include <algorithm>

#include "dictionary_tag.h"

namespace py = pybind11;

namespace hrnet_fast::training {

namespace {

bool is_container(const py::handle& value) {
  return PyDict_Check(value.ptr()) || PyList_Check(value.ptr()) || PyAnySet_Check(value.ptr());
}

// Names as Python objects, made once.
struct Names {
  py::str forward{"forward"}, conv_forward{"_conv_forward"};
};

const Names& names() {
  static const Names* found = new Names;  // outlives the interpreter's end
  return *found;
}

py::object method(const py::handle& kind, const py::str& name) {
  PyObject* found = PyObject_GetAttr(kind.ptr(), name.ptr());
  if (found == nullptr) PyErr_Clear();
  return found == nullptr ? py::object(py::none()) : py::reinterpret_steal<py::object>(found);
}

bool equal(const py::handle& now, const py::handle& then) {
  if (now.is(then)) return true;
  const int result = PyObject_RichCompareBool(now.ptr(), then.ptr(), Py_EQ);
  if (result < 0) PyErr_Clear();
  return result == 1;
}

// A container, against its copy.
bool same_container(const py::handle& now, const py::handle& then) {
  const py::ssize_t size = PyObject_Size(now.ptr());
  if (size != PyObject_Size(then.ptr())) return false;
  return size == 0 || equal(now, then);
}

}  // namespace

ModuleStates::ModuleStates(const py::handle& root, const py::iterable& others, const py::tuple& apart) : apart_(apart) {
  states_.push_back(state_of(root));
  for (const py::handle& module : others) {
    states_.push_back(state_of(module));
    states_.back().module = py::reinterpret_borrow<py::object>(module);
  }
}

ModuleStates::State ModuleStates::state_of(const py::handle& module) {
  const auto kind = py::reinterpret_borrow<py::object>(py::type::handle_of(module));
  if (std::none_of(kinds_.begin(), kinds_.end(), [&](const Kind& known) { return known.kind.is(kind); }))
    kinds_.push_back({kind, method(kind, names().forward), method(kind, names().conv_forward)});
  State state{{}, kind, {}, 0, {}};
  const py::dict own = module.attr("__dict__").attr("copy")();  // at once: other threads may add to it
  for (const auto& [name, value] : own) {
    const bool left_out = apart_.contains(name), copied = !left_out && is_container(value);
    py::object then = py::reinterpret_borrow<py::object>(value);
    if (copied) then = value.attr("copy")();
    if (left_out) then = py::none();
    const bool empty = copied && PyObject_Size(then.ptr()) == 0;
    state.attributes.push_back({py::reinterpret_borrow<py::object>(name), std::move(then), copied, left_out, empty});
  }
  return state;
}

// The usual case, without a lookup: the same names in the same order, with the same values. Most are empty: hooks.
bool ModuleStates::in_order(State& state, PyObject* own) {
  // Before anything is compared, which may run Python: a change meanwhile moves it on.
  const uint64_t tag = dictionary_tag(own);
  state.tag = 0;
  state.containers.clear();
  py::ssize_t at = 0;
  size_t k = 0;
  PyObject *key, *now;
  while (PyDict_Next(own, &at, &key, &now)) {
    const py::handle name(key), value(now);
    if (k == state.attributes.size() || !state.attributes[k].name.is(name)) return false;
    const size_t number = k++;
    const Attribute& then = state.attributes[number];
    if (then.apart) continue;
    if (!then.copied || !is_container(value)) {
      if (!then.value.is(value)) return false;
      continue;
    }
    const uint64_t before = PyDict_CheckExact(now) ? dictionary_tag(now) : 0;
    const py::object held = py::reinterpret_borrow<py::object>(value);  // a comparison may run Python
    if (!same_container(held, then.value)) return false;
    state.containers.push_back({now, number, before});
  }
  if (k != state.attributes.size()) return false;
  state.tag = tag;
  return true;
}

// Of a module whose attributes are the objects that they were.
bool ModuleStates::same_containers(State& state, PyObject* own) {
  for (Container& container : state.containers) {
    PyObject* now = container.now;
    const Attribute& then = state.attributes[container.attribute];
    if (then.empty && PyDict_Check(now) && PyDict_GET_SIZE(now) == 0) continue;
    const uint64_t tag = PyDict_CheckExact(now) ? dictionary_tag(now) : 0;
    if (tag != 0 && tag == container.tag) continue;
    container.tag = 0;
    const py::object held = py::reinterpret_borrow<py::object>(now);
    // A comparison may run Python, and that may change the attributes.
    if (!same_container(held, then.value) || dictionary_tag(own) != state.tag) return false;
    container.tag = tag;
  }
  return true;
}

bool ModuleStates::by_name(const State& state, PyObject* own) const {
  py::ssize_t left_out = 0, then = 0;
  for (const py::handle& name : apart_) left_out += PyDict_Contains(own, name.ptr()) == 1;
  for (const Attribute& attribute : state.attributes) {
    if (attribute.apart) continue;
    ++then;
    PyObject* now = PyDict_GetItemWithError(own, attribute.name.ptr());
    if (now == nullptr) {
      PyErr_Clear();
      return false;
    }
    const py::object held = py::reinterpret_borrow<py::object>(now);  // a comparison may run Python
    if (attribute.copied && is_container(held) ? !same_container(held, attribute.value) : !equal(held, attribute.value))
      return false;
  }
  return PyDict_Size(own) - left_out == then;
}

bool ModuleStates::unchanged(State& state, const py::handle& module) const {
  if (!py::type::handle_of(module).is(state.kind)) return false;
  const auto dictionary = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
  if (!dictionary) throw py::error_already_set();
  PyObject* own = dictionary.ptr();
  if (state.tag != 0 && state.tag == dictionary_tag(own)) return same_containers(state, own);
  return in_order(state, own) || by_name(state, own);
}

bool ModuleStates::unchanged(const py::handle& root) {
  const Names& n = names();
  for (const Kind& known : kinds_)
    if (!method(known.kind, n.forward).is(known.forward) || !method(known.kind, n.conv_forward).is(known.conv_forward))
      return false;
  for (State& state : states_)
    if (!unchanged(state, state.module ? state.module : root)) return false;
  return true;
}

int ModuleStates::traverse(visitproc visit, void* arg) const {
  for (const State& state : states_) {
    for (const py::object* held : {&state.module, &state.kind}) Py_VISIT(held->ptr());
    for (const Attribute& attribute : state.attributes) Py_VISIT(attribute.value.ptr());
  }
  for (const Kind& known : kinds_)
    for (const py::object* held : {&known.kind, &known.forward, &known.conv_forward}) Py_VISIT(held->ptr());
  return 0;
}

}  // namespace hrnet_fast::training
