// Notices changes of modules' structure: see module_states.h.

#include "module_states.h"

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

ModuleStates::ModuleStates(const py::iterable& modules, const py::tuple& apart) : apart_(apart) {
  for (const py::handle& module : modules) {
    const py::handle kind = py::type::handle_of(module);
    State state{py::reinterpret_borrow<py::object>(module),
                py::reinterpret_borrow<py::object>(kind),
                method(kind, names().forward),
                method(kind, names().conv_forward),
                module.attr("__dict__"),
                {}};
    const py::dict own = state.own.attr("copy")();  // at once: other threads may add to it
    for (const auto& [name, value] : own) {
      const bool left_out = apart.contains(name), copied = !left_out && is_container(value);
      py::object then = py::reinterpret_borrow<py::object>(value);
      if (copied) then = value.attr("copy")();
      if (left_out) then = py::none();
      const bool empty = copied && PyObject_Size(then.ptr()) == 0;
      state.attributes.push_back({py::reinterpret_borrow<py::object>(name), std::move(then), copied, left_out, empty});
    }
    states_.push_back(std::move(state));
  }
}

// The usual case, without a lookup: the same names in the same order, with the same values. Most are empty: hooks.
bool ModuleStates::in_order(const State& state) {
  py::ssize_t at = 0;
  size_t k = 0;
  PyObject *key, *now;
  while (PyDict_Next(state.own.ptr(), &at, &key, &now)) {
    const py::handle name(key), value(now);
    if (k == state.attributes.size() || !state.attributes[k].name.is(name)) return false;
    const Attribute& then = state.attributes[k++];
    if (then.apart || (then.empty && PyDict_Check(now) && PyDict_GET_SIZE(now) == 0)) continue;
    if (!then.copied || !is_container(value)) {
      if (!then.value.is(value)) return false;
      continue;
    }
    const py::object held = py::reinterpret_borrow<py::object>(value);  // a comparison may run Python
    if (!same_container(held, then.value)) return false;
  }
  return k == state.attributes.size();
}

bool ModuleStates::by_name(const State& state) const {
  py::ssize_t left_out = 0, then = 0;
  for (const py::handle& name : apart_) left_out += PyDict_Contains(state.own.ptr(), name.ptr()) == 1;
  for (const Attribute& attribute : state.attributes) {
    if (attribute.apart) continue;
    ++then;
    PyObject* now = PyDict_GetItemWithError(state.own.ptr(), attribute.name.ptr());
    if (now == nullptr) {
      PyErr_Clear();
      return false;
    }
    const py::object held = py::reinterpret_borrow<py::object>(now);  // a comparison may run Python
    if (attribute.copied && is_container(held) ? !same_container(held, attribute.value) : !equal(held, attribute.value))
      return false;
  }
  return PyDict_Size(state.own.ptr()) - left_out == then;
}

bool ModuleStates::unchanged() const {
  const Names& n = names();
  for (const State& state : states_) {
    const py::handle kind = py::type::handle_of(state.module);
    if (!kind.is(state.kind) || !method(kind, n.forward).is(state.forward) ||
        !method(kind, n.conv_forward).is(state.conv_forward))
      return false;
    if (!in_order(state) && !by_name(state)) return false;
  }
  return true;
}

int ModuleStates::traverse(visitproc visit, void* arg) const {
  for (const State& state : states_) {
    for (const py::object* held : {&state.module, &state.kind, &state.forward, &state.conv_forward})
      Py_VISIT(held->ptr());
    Py_VISIT(state.own.ptr());
    for (const Attribute& attribute : state.attributes) Py_VISIT(attribute.value.ptr());
  }
  return 0;
}

}  // namespace hrnet_fast::training
