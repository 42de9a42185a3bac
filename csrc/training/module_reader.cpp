// Reads layers from Python modules: see module_reader.h.

#include "module_reader.h"

#include <torch/csrc/autograd/python_variable.h>

namespace py = pybind11;

namespace hrnet_fast::training {

namespace {

// Names as Python objects, made once: a lookup by them takes some twenty nanoseconds.
struct Names {
  py::str parameters{"_parameters"}, buffers{"_buffers"}, weight{"weight"}, bias{"bias"}, mean{"running_mean"},
      variance{"running_var"}, counter{"num_batches_tracked"}, stride{"stride"}, padding{"padding"},
      dilation{"dilation"}, groups{"groups"}, training{"training"}, momentum{"momentum"}, eps{"eps"},
      tracks{"track_running_stats"};
};

const Names& names() {
  static const Names* found = new Names;  // outlives the interpreter's end
  return *found;
}

PyObject* item(const py::handle& dict, const py::str& name) {
  PyObject* found = PyDict_GetItemWithError(dict.ptr(), name.ptr());
  if (found == nullptr) {
    if (PyErr_Occurred()) throw py::error_already_set();
    throw py::attribute_error("a layer has no attribute " + std::string(name));
  }
  return found;
}

at::Tensor tensor(const py::handle& dict, const py::str& name) {
  PyObject* found = item(dict, name);
  if (found == Py_None) return {};
  if (!THPVariable_Check(found)) throw py::type_error("a layer's " + std::string(name) + " is no tensor");
  return THPVariable_Unpack(found);
}

std::vector<int64_t> integers(const py::handle& dict, const py::str& name) {
  std::vector<int64_t> found;
  for (const py::handle& value : py::reinterpret_borrow<py::tuple>(item(dict, name)))
    found.push_back(value.cast<int64_t>());
  return found;
}

bool truth(const py::handle& dict, const py::str& name) { return PyObject_IsTrue(item(dict, name)) == 1; }

}  // namespace

LayerModules::LayerModules(const py::object& conv, const py::object& norm, bool frozen)
    : conv_(conv.attr("__dict__")), norm_(norm.attr("__dict__")), frozen_(frozen) {}

ConvNorm LayerModules::read() const {
  const Names& n = names();
  const py::handle conv = item(conv_, n.parameters), buffers = item(norm_, n.buffers);
  const py::handle norm = frozen_ ? buffers : py::handle(item(norm_, n.parameters));
  ConvNorm layer;
  layer.weight = tensor(conv, n.weight);
  layer.bias = tensor(conv, n.bias);
  layer.stride = integers(conv_, n.stride);
  layer.padding = integers(conv_, n.padding);
  layer.dilation = integers(conv_, n.dilation);
  layer.groups = py::handle(item(conv_, n.groups)).cast<int64_t>();
  layer.scale = tensor(norm, n.weight);
  layer.shift = tensor(norm, n.bias);
  layer.running_mean = tensor(buffers, n.mean);
  layer.running_var = tensor(buffers, n.variance);
  layer.eps = py::handle(item(norm_, n.eps)).cast<double>();
  if (frozen_) return layer;
  // As torch.nn.BatchNorm2d.forward decides.
  const bool training = truth(norm_, n.training), has_means = layer.running_mean.defined();
  const bool tracks = training && truth(norm_, n.tracks) && has_means;
  layer.batch = training || !has_means;
  if (tracks) layer.counter = tensor(buffers, n.counter);
  PyObject* momentum = item(norm_, n.momentum);
  if (momentum != Py_None)
    layer.momentum = py::handle(momentum).cast<double>();
  else if (layer.counter.defined())  // a cumulative average; this batch is not counted yet
    layer.momentum = 1.0 / (layer.counter.item<double>() + 1.0);
  if (layer.batch && !tracks) {
    layer.running_mean = at::Tensor();
    layer.running_var = at::Tensor();
  }
  return layer;
}

int LayerModules::traverse(visitproc visit, void* arg) const {
  Py_VISIT(conv_.ptr());
  Py_VISIT(norm_.ptr());
  return 0;
}

void LayerModules::clear() {
  conv_ = py::dict();
  norm_ = py::dict();
}

}  // namespace hrnet_fast::training
