// Residual chains and fusions for Python: hrnet_fast/training has the autograd nodes that call them.

#include "bindings.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>

#include "module_reader.h"
#include "module_states.h"
#include "residual_chain.h"
#include "stacked_fusion.h"

namespace py = pybind11;

namespace hrnet_fast::training {
namespace {

using OptionalTensors = std::vector<std::optional<at::Tensor>>;

std::optional<at::Tensor> or_none(const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; }

// Code below autograd and autocast, which the calling node stands for, without the interpreter's lock.
struct Below {
  py::gil_scoped_release release;
  at::AutoDispatchBelowADInplaceOrView autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

void append(OptionalTensors& to, const ConvNorm& layer) {
  for (const at::Tensor* t : {&layer.weight, &layer.bias, &layer.scale, &layer.shift}) to.push_back(or_none(*t));
}

void append(OptionalTensors& to, const Gradients& g) {
  for (const at::Tensor* t : {&g.weight, &g.bias, &g.scale, &g.shift}) to.push_back(or_none(*t));
}

std::vector<Wanted> fours(const std::vector<bool>& flags) {
  std::vector<Wanted> found(flags.size() / 4);
  for (size_t k = 0; k < flags.size(); ++k) found[k / 4][k % 4] = flags[k];
  return found;
}

// Whether the layer computes in `dtype` without autocast.
bool is_of(const ConvNorm& layer, at::ScalarType dtype) { return layer.weight.scalar_type() == dtype; }

Memory memory_of(const std::string& name) {
  if (name == "fast") return Memory::kFast;
  if (name == "lean") return Memory::kLean;
  if (name == "min") return Memory::kMin;
  throw std::invalid_argument("memory is fast, lean or min, not " + name);
}

// Lets Python's garbage collector see what a class refers to: a module may refer back to the one that holds this.
template <typename T>
py::custom_type_setup collectable() {
  return py::custom_type_setup([](PyHeapTypeObject* heap) {
    PyTypeObject* type = &heap->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
#if PY_VERSION_HEX >= 0x03090000
      Py_VISIT(Py_TYPE(self));
#endif
      auto* instance = reinterpret_cast<py::detail::instance*>(self);
      if (!instance->get_value_and_holder().holder_constructed()) return 0;
      return py::cast<T&>(py::handle(self)).traverse(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
      auto* instance = reinterpret_cast<py::detail::instance*>(self);
      if (instance->get_value_and_holder().holder_constructed()) py::cast<T&>(py::handle(self)).clear();
      return 0;
    };
  });
}

// Modules of one layer as Python gives them: convolution, normalisation, and whether that is frozen.
using Given = std::tuple<py::object, py::object, bool>;

LayerModules modules_of(const Given& given) { return {std::get<0>(given), std::get<1>(given), std::get<2>(given)}; }

// A chain at a call, with what its forward leaves for backward.
class ChainCall {
 public:
  explicit ChainCall(Chain chain) : chain_(std::move(chain)) {}

  OptionalTensors parameters() const {
    OptionalTensors found;
    for (const ConvNorm* layer : chain_.layers()) append(found, *layer);
    return found;
  }

  bool computes_in(at::ScalarType dtype) const {
    for (const ConvNorm* layer : chain_.layers())
      if (!is_of(*layer, dtype)) return false;
    return true;
  }

  bool normalises_batches() const { return chain_.units[0].layers[0].batch; }

  at::Tensor run(const at::Tensor& x, bool blocks) {
    chain_.blocks = blocks;
    const Below below;
    return chain_forward(chain_, x, nullptr);
  }

  // Returns the output and the tensors to be kept; weights that are the parameters' own are left out.
  std::pair<at::Tensor, std::vector<at::Tensor>> forward(const at::Tensor& x, const std::string& memory, bool blocks) {
    chain_.memory = memory_of(memory);
    chain_.blocks = blocks;
    const Below below;
    Kept kept;
    const at::Tensor out = chain_forward(chain_, x, &kept);
    if (!kept.activations.empty()) kept.activations.pop_back();  // the output is the node's
    std::vector<at::Tensor> all = kept.affines;
    for (const auto* part : {&kept.ys, &kept.inner, &kept.activations})
      all.insert(all.end(), part->begin(), part->end());
    sizes_ = {kept.affines.size(), kept.ys.size(), kept.inner.size(), kept.activations.size()};
    const auto layers = chain_.layers();
    for (size_t k = 0; k < layers.size(); ++k)
      if (!kept.weights[k].is_same(layers[k]->weight)) {
        all.push_back(kept.weights[k]);
        cast_.push_back(k);
      }
    return {out, all};
  }

  size_t kept() const { return sizes_[0] + sizes_[1] + sizes_[2] + sizes_[3] + cast_.size(); }

  // What backward needs, of the tensors that forward returned, the chain's input and the output (with "fast").
  Kept recompute(const std::vector<at::Tensor>& saved, const at::Tensor& x, const OptionalTensors& parameters,
                 const std::optional<at::Tensor>& out) const {
    const Below below;
    Kept kept;
    auto next = saved.begin();
    const auto take = [&](size_t n) {
      const std::vector<at::Tensor> part(next, next + n);
      next += n;
      return part;
    };
    kept.affines = take(sizes_[0]);
    kept.ys = take(sizes_[1]);
    kept.inner = take(sizes_[2]);
    kept.activations = take(sizes_[3]);
    if (out) kept.activations.push_back(*out);
    for (size_t k = 0; k < sizes_[0]; ++k) kept.weights.push_back(*parameters[4 * k]);
    for (const size_t k : cast_) kept.weights[k] = *next++;
    chain_recompute(chain_, x, kept);
    return kept;
  }

  OptionalTensors backward(Kept& kept, const at::Tensor& grad, bool want_x, const std::vector<bool>& wanted) const {
    const Below below;
    const auto found = chain_backward(chain_, std::move(kept), grad, want_x, fours(wanted));
    OptionalTensors all{or_none(found.x)};
    for (const Gradients& g : found.layers) append(all, g);
    return all;
  }

 private:
  Chain chain_;
  std::array<size_t, 4> sizes_{};
  std::vector<size_t> cast_;
};

class ChainModules {
 public:
  // Units: layers, and how many of them are the shortcut's: -1 for the identity, 0 for none, 1 for a projection.
  explicit ChainModules(const std::vector<std::pair<std::vector<Given>, int>>& units) {
    for (const auto& [layers, shortcut] : units) {
      std::vector<LayerModules> modules;
      for (const Given& layer : layers) modules.push_back(modules_of(layer));
      units_.emplace_back(std::move(modules), shortcut < 0    ? Shortcut::kIdentity
                                              : shortcut == 0 ? Shortcut::kNone
                                                              : Shortcut::kProjection);
    }
  }

  std::unique_ptr<ChainCall> read() const {
    Chain chain;
    for (const auto& [modules, shortcut] : units_) {
      Unit unit;
      unit.shortcut = shortcut;
      for (const LayerModules& layer : modules) unit.layers.push_back(layer.read());
      chain.units.push_back(std::move(unit));
    }
    return std::make_unique<ChainCall>(std::move(chain));
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& [modules, shortcut] : units_)
      for (const LayerModules& layer : modules)
        if (const int found = layer.traverse(visit, arg)) return found;
    return 0;
  }
  void clear() { units_.clear(); }

 private:
  std::vector<std::pair<std::vector<LayerModules>, Shortcut>> units_;
};

// A fusion at a call.
class FusionCall {
 public:
  FusionCall(std::vector<std::vector<Term>> rows, size_t sources, int64_t mode)
      : fusion_(std::move(rows), sources, mode) {}

  OptionalTensors parameters() const {
    OptionalTensors found;
    for (const Member& member : fusion_.members()) append(found, member.layer());
    return found;
  }

  bool alike() const { return fusion_.alike(); }

  std::vector<at::Tensor> weights() const {
    std::vector<at::Tensor> found;
    for (const Member& member : fusion_.members()) found.push_back(member.layer().weight);
    return found;
  }

  // The first term whose map does not fit its target: source and target; sizes are the branches' (height, width).
  std::optional<std::pair<size_t, size_t>> misfit(const std::vector<std::array<int64_t, 2>>& sizes, bool exact) const {
    return fusion_.misfit(sizes, exact);
  }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& xs) {
    const Below below;
    return fusion_.forward(xs, nullptr);
  }

  // Returns the targets and the tensors to be kept: outputs of the stacked convolutions and their affines.
  std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> forward(const std::vector<at::Tensor>& xs) {
    const Below below;
    Fusion::Kept kept;
    auto outs = fusion_.forward(xs, &kept);
    kept.ys.insert(kept.ys.end(), kept.affines.begin(), kept.affines.end());
    return {std::move(outs), std::move(kept.ys)};
  }

  size_t kept() const { return 2 * fusion_.groups(); }

  OptionalTensors backward(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                           const std::vector<at::Tensor>& outs, const OptionalTensors& grads,
                           const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const {
    const Below below;
    const size_t n = fusion_.groups();
    Fusion::Kept kept;
    kept.ys.assign(saved.begin(), saved.begin() + n);
    kept.affines.assign(saved.begin() + n, saved.begin() + 2 * n);
    kept.weights = fusion_.weights(xs[0].scalar_type());
    std::vector<at::Tensor> given;
    for (const auto& grad : grads) given.push_back(grad.value_or(at::Tensor()));
    const auto found = fusion_.backward(std::move(kept), xs, outs, given, want_xs, fours(wanted));
    OptionalTensors all;
    for (const at::Tensor& x : found.xs) all.push_back(or_none(x));
    for (const Gradients& g : found.members) append(all, g);
    return all;
  }

 private:
  Fusion fusion_;
};

class FusionModules {
 public:
  using GivenTerm = std::tuple<size_t, size_t, std::vector<Given>>;

  // Rows of terms: source, target and layers.
  FusionModules(const std::vector<std::vector<GivenTerm>>& rows, size_t sources, int64_t mode)
      : sources_(sources), mode_(mode) {
    for (const auto& row : rows) {
      rows_.emplace_back();
      for (const auto& [source, target, layers] : row) {
        rows_.back().push_back({source, target, {}});
        for (const Given& layer : layers) rows_.back().back().layers.push_back(modules_of(layer));
      }
    }
  }

  std::unique_ptr<FusionCall> read() const {
    std::vector<std::vector<Term>> rows;
    for (const auto& row : rows_) {
      rows.emplace_back();
      for (const auto& term : row) {
        rows.back().push_back({term.source, term.target, {}});
        for (const LayerModules& layer : term.layers) rows.back().back().layers.push_back(layer.read());
      }
    }
    return std::make_unique<FusionCall>(std::move(rows), sources_, mode_);
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& row : rows_)
      for (const auto& term : row)
        for (const LayerModules& layer : term.layers)
          if (const int found = layer.traverse(visit, arg)) return found;
    return 0;
  }
  void clear() { rows_.clear(); }

 private:
  struct TermModules {
    size_t source, target;
    std::vector<LayerModules> layers;
  };
  std::vector<std::vector<TermModules>> rows_;
  size_t sources_;
  int64_t mode_;
};

}  // namespace

void bind_training(py::module_& m) {
  py::class_<ModuleStates>(m, "ModuleStates", collectable<ModuleStates>())
      .def(py::init<const py::iterable&, const py::tuple&>())
      .def("unchanged", &ModuleStates::unchanged);
  py::class_<Kept>(m, "ChainActivations").def_property_readonly("output", [](const Kept& kept) {
    return kept.activations.back();
  });
  py::class_<ChainCall>(m, "ResidualChainCall")
      .def("parameters", &ChainCall::parameters)
      .def("computes_in", &ChainCall::computes_in)
      .def_property_readonly("normalises_batches", &ChainCall::normalises_batches)
      .def_property_readonly("kept", &ChainCall::kept)
      .def("run", &ChainCall::run)
      .def("forward", &ChainCall::forward)
      .def("recompute", &ChainCall::recompute)
      .def("backward", &ChainCall::backward);
  py::class_<ChainModules>(m, "ResidualChain", collectable<ChainModules>())
      .def(py::init<const std::vector<std::pair<std::vector<Given>, int>>&>())
      .def("read", &ChainModules::read);
  py::class_<FusionCall>(m, "StackedFusionCall")
      .def("parameters", &FusionCall::parameters)
      .def("alike", &FusionCall::alike)
      .def("weights", &FusionCall::weights)
      .def("misfit", &FusionCall::misfit)
      .def_property_readonly("kept", &FusionCall::kept)
      .def("run", &FusionCall::run)
      .def("forward", &FusionCall::forward)
      .def("backward", &FusionCall::backward);
  py::class_<FusionModules>(m, "StackedFusion", collectable<FusionModules>())
      .def(py::init<const std::vector<std::vector<FusionModules::GivenTerm>>&, size_t, int64_t>())
      .def("read", &FusionModules::read);
}

}  // namespace hrnet_fast::training
