// Reads layers from Python modules: see module_reader.h.

#include "module_reader.h"

#include <pybind11/stl.h>
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

std::array<int64_t, 2> integers(const py::handle& dict, const py::str& name) {
  return py::handle(item(dict, name)).cast<std::array<int64_t, 2>>();
}

bool truth(const py::handle& dict, const py::str& name) { return PyObject_IsTrue(item(dict, name)) == 1; }

}  // namespace

LayerModules::LayerModules(const py::object& conv, const py::object& norm, bool frozen)
    : conv_(conv.attr("__dict__")), frozen_(frozen), normalises_(!norm.is_none()) {
  const Names& n = names();
  attributes_.stride = integers(conv_, n.stride);
  attributes_.padding = integers(conv_, n.padding);
  attributes_.dilation = integers(conv_, n.dilation);
  attributes_.groups = py::handle(item(conv_, n.groups)).cast<int64_t>();
  if (!normalises_) return;
  norm_ = norm.attr("__dict__");
  attributes_.eps = py::handle(item(norm_, n.eps)).cast<double>();
  if (frozen) return;
  attributes_.batch = truth(norm_, n.training);
  tracks_ = attributes_.batch && truth(norm_, n.tracks);
  PyObject* momentum = item(norm_, n.momentum);
  averages_ = momentum == Py_None;
  if (!averages_) attributes_.momentum = py::handle(momentum).cast<double>();
}

ConvNorm LayerModules::read() const {
  const Names& n = names();
  const py::handle conv = item(conv_, n.parameters);
  ConvNorm layer = attributes_;
  layer.weight = tensor(conv, n.weight);
  layer.bias = tensor(conv, n.bias);
  if (!normalises_) return layer;
  const py::handle buffers = item(norm_, n.buffers);
  const py::handle norm = frozen_ ? buffers : py::handle(item(norm_, n.parameters));
  layer.scale = tensor(norm, n.weight);
  layer.shift = tensor(norm, n.bias);
  layer.running_mean = tensor(buffers, n.mean);
  layer.running_var = tensor(buffers, n.variance);
  if (frozen_) return layer;
  // As torch.nn.BatchNorm2d.forward decides.
  const bool has_means = layer.running_mean.defined(), tracks = tracks_ && has_means;
  layer.batch = layer.batch || !has_means;
  if (tracks) layer.counter = tensor(buffers, n.counter);
  if (averages_ && layer.counter.defined())  // this batch is not counted yet
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
