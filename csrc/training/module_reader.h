// Reads a convolution and its batch normalisation from their Python modules, as they stand at a call.

#pragma once

#include <pybind11/pybind11.h>

#include "conv_norm.h"

namespace hrnet_fast::training {

// The modules of one layer. Parameters and buffers are read at every call. Attributes are read once: who holds this
// makes it anew when they change (hrnet_fast/training/structure_cache.py).
class LayerModules {
 public:
  // `frozen`: the normalisation has no mode of training, momentum and counter (FrozenBatchNorm2d). None: there is none.
  LayerModules(const pybind11::object& conv, const pybind11::object& norm, bool frozen);

  ConvNorm read() const;

  // Python's garbage collector follows the references to modules.
  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  pybind11::dict conv_, norm_;
  bool frozen_, normalises_, tracks_ = false, averages_ = false;  // momentum None: cumulative averages
  ConvNorm attributes_;                                           // without tensors
};

}  // namespace hrnet_fast::training
