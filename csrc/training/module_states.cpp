// Notices changes of modules' structure: see module_states.h.

#include "module_states.h"

namespace py = pybind11;

namespace hrnet_fast::training {

namespace {

bool is_container(const py::handle& value) {
  return PyDict_Check(value.ptr()) || PyList_Check(value.ptr()) || PyAnySet_Check(value.ptr());
}

py::object method(const py::handle& kind, const char* name) { return py::getattr(kind, name, py::none()); }

bool same(const py::handle& now, const py::handle& then) {
  if (now.is(then)) return true;
  const int equal = PyObject_RichCompareBool(now.ptr(), then.ptr(), Py_EQ);
  if (equal < 0) PyErr_Clear();
  return equal == 1;
}

}  // namespace

ModuleStates::ModuleStates(const py::iterable& modules, const py::tuple& apart) : apart_(apart) {
  for (const py::handle& module : modules) {
    const py::handle kind = py::type::handle_of(module);
    State state{py::reinterpret_borrow<py::object>(module),
                py::reinterpret_borrow<py::object>(kind),
                method(kind, "forward"),
                method(kind, "_conv_forward"),
                module.attr("__dict__"),
                {}};
    const py::dict own = state.own.attr("copy")();  // at once: other threads may add to it
    for (const auto& [name, value] : own) {
      if (apart.contains(name)) continue;
      const bool copied = is_container(value);
      state.attributes.push_back({py::reinterpret_borrow<py::object>(name),
                                  copied ? py::object(value.attr("copy")()) : py::reinterpret_borrow<py::object>(value),
                                  copied});
    }
    states_.push_back(std::move(state));
  }
}

py::ssize_t ModuleStates::left_out(const State& state) const {
  py::ssize_t found = 0;
  for (const py::handle& name : apart_) found += PyDict_Contains(state.own.ptr(), name.ptr()) == 1;
  return found;
}

bool ModuleStates::unchanged() const {
  for (const State& state : states_) {
    const py::handle kind = py::type::handle_of(state.module);
    if (!kind.is(state.kind) || !method(kind, "forward").is(state.forward) ||
        !method(kind, "_conv_forward").is(state.conv_forward))
      return false;
    if (PyDict_Size(state.own.ptr()) - left_out(state) != static_cast<py::ssize_t>(state.attributes.size()))
      return false;
    for (const Attribute& attribute : state.attributes) {
      PyObject* now = PyDict_GetItemWithError(state.own.ptr(), attribute.name.ptr());
      if (now == nullptr) {
        PyErr_Clear();
        return false;
      }
      if (attribute.copied && is_container(now)) {
        // Hooks: nearly always empty.
        const py::ssize_t size = PyObject_Size(now);
        if (size != PyObject_Size(attribute.value.ptr())) return false;
        if (size == 0) continue;
      }
      if (!same(now, attribute.value)) return false;
    }
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
