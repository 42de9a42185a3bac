// Reads a convolution and its batch normalisation from their Python modules, as they stand at a call.

#pragma once

#include <pybind11/pybind11.h>

#include "conv_norm.h"

namespace hrnet_fast::training {

// The modules of one layer. Parameters, buffers and numbers are read at every call; nothing of them is kept.
class LayerModules {
 public:
  // `frozen`: the normalisation has no mode of training, momentum and counter (FrozenBatchNorm2d).
  LayerModules(const pybind11::object& conv, const pybind11::object& norm, bool frozen);

  ConvNorm read() const;

  // Python's garbage collector follows the references to modules.
  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  pybind11::dict conv_, norm_;
  bool frozen_;
};

}  // namespace hrnet_fast::training
