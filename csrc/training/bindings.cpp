// Residual chains and fusions for Python: hrnet_fast/training reads modules with them and runs what was read.

#include "bindings.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>

#include "autograd.h"
#include "module_reader.h"
#include "module_states.h"
#include "operator_nodes.h"
#include "tensor_list.h"
#include "tensor_versions.h"
#include "v2_head.h"

namespace py = pybind11;

namespace hrnet_fast::training {
namespace {

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

  std::shared_ptr<ChainsCall> read() const { return std::make_shared<ChainsCall>(std::vector<Chain>{chain()}); }

  // Several as one call; null where they cannot execute together.
  static std::shared_ptr<ChainsCall> read_joined(const std::vector<ChainModules*>& all) {
    std::vector<Chain> chains;
    for (const ChainModules* own : all) chains.push_back(own->chain());
    return ChainsCall::joined(std::move(chains));
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& [modules, shortcut] : units_)
      for (const LayerModules& layer : modules)
        if (const int found = layer.traverse(visit, arg)) return found;
    return 0;
  }
  void clear() { units_.clear(); }

 private:
  Chain chain() const {
    Chain found;
    for (const auto& [modules, shortcut] : units_) {
      Unit& unit = found.units.emplace_back();
      unit.shortcut = shortcut;
      for (const LayerModules& layer : modules) unit.layers.push_back(layer.read());
    }
    return found;
  }

  std::vector<std::pair<std::vector<LayerModules>, Shortcut>> units_;
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

  std::shared_ptr<FusionCall> read() const {
    std::vector<std::vector<Term>> rows;
    for (const auto& row : rows_) {
      rows.emplace_back();
      for (const auto& term : row) {
        rows.back().push_back({term.source, term.target, {}});
        for (const LayerModules& layer : term.layers) rows.back().back().layers.push_back(layer.read());
      }
    }
    return std::make_shared<FusionCall>(std::move(rows), sources_, mode_);
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

class V2HeadModules {
 public:
  V2HeadModules(const Given& mix, const py::object& classifier, int64_t mode)
      : mix_(modules_of(mix)), classifier_(classifier, py::none(), false), mode_(mode) {}

  std::shared_ptr<V2HeadCall> read() const {
    return std::make_shared<V2HeadCall>(mix_.read(), classifier_.read(), mode_);
  }

  int traverse(visitproc visit, void* arg) const {
    const int found = mix_.traverse(visit, arg);
    return found ? found : classifier_.traverse(visit, arg);
  }
  void clear() {
    mix_.clear();
    classifier_.clear();
  }

 private:
  LayerModules mix_, classifier_;
  int64_t mode_;
};

// A tensor, undefined for None; or nothing for an object of another class, which may mean something else by it.
std::optional<at::Tensor> plain_tensor(const py::handle& given) {
  if (given.is_none()) return at::Tensor();
  if (!THPVariable_CheckExact(given.ptr())) return std::nullopt;
  return THPVariable_Unpack(given.ptr());
}

std::optional<std::vector<at::Tensor>> plain_tensors(const py::list& given) {
  std::vector<at::Tensor> found;
  for (const py::handle& one : given) {
    auto tensor = plain_tensor(one);
    if (!tensor) return std::nullopt;
    found.push_back(std::move(*tensor));
  }
  return found;
}

std::optional<at::Tensor> run_bn_act(const py::list& given, bool relu, bool batch, double momentum, double eps) {
  const auto tensors = plain_tensors(given);
  if (!tensors) return std::nullopt;
  const auto& t = *tensors;
  const BnActCall call{t.at(0), t.at(1), t.at(2), t.at(3), t.at(4), t.at(5), relu, batch, momentum, eps};
  const py::gil_scoped_release unlocked;
  return bn_act_node(call);
}

std::optional<at::Tensor> run_fuse_sum(const py::list& xs, const py::list& scales, const py::list& shifts,
                                       std::vector<int64_t> size, int64_t mode, bool relu) {
  auto maps = plain_tensors(xs), own_scales = plain_tensors(scales), own_shifts = plain_tensors(shifts);
  if (!maps || !own_scales || !own_shifts) return std::nullopt;
  const FuseSumCall call{std::move(*maps), std::move(*own_scales), std::move(*own_shifts), std::move(size), mode, relu};
  const py::gil_scoped_release unlocked;
  return fuse_sum_node(call);
}

}  // namespace

void bind_training(py::module_& m) {
  m.def("bn_act", &run_bn_act);
  m.def("fuse_sum", &run_fuse_sum);
  py::class_<ModuleStates>(m, "ModuleStates", collectable<ModuleStates>())
      .def(py::init<const py::handle&, const py::iterable&, const py::tuple&>())
      .def("unchanged", py::overload_cast<const py::handle&>(&ModuleStates::unchanged));
  py::class_<TensorVersions>(m, "TensorVersions", collectable<TensorVersions>())
      .def(py::init<const py::iterable&>())
      .def("unchanged", &TensorVersions::unchanged);
  py::class_<TensorList>(m, "TensorList", collectable<TensorList>())
      .def(py::init<py::list>())
      .def("have_same_memory", &TensorList::have_same_memory)
      .def("require_same_gradients", &TensorList::require_same_gradients)
      .def("have_gradients", &TensorList::have_gradients)
      .def("increment_versions", &TensorList::increment_versions);
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Recomputation>(m, "Recomputation")
      .def_property_readonly("node", &Recomputation::node)
      .def("tensor", &Recomputation::tensor, Unlocked());
  m.def("recomputation_of", [](const at::Tensor& x) {
    auto found = Recomputation::of(x);
    return found && found->is_compiled() ? found : std::nullopt;
  });
  py::class_<ChainsCall, std::shared_ptr<ChainsCall>>(m, "ResidualChainsCall")
      .def_readwrite("together", &ChainsCall::together)
      .def("require_grad_alike", &ChainsCall::require_grad_alike)
      .def(
          "run",
          [](const std::shared_ptr<ChainsCall>& self, const std::vector<at::Tensor>& xs, const std::string& memory) {
            return run_chains(self, xs, memory_of(memory));
          },
          Unlocked());
  py::class_<ChainModules>(m, "ResidualChain", collectable<ChainModules>())
      .def(py::init<const std::vector<std::pair<std::vector<Given>, int>>&>())
      .def("read", &ChainModules::read)
      .def_static("read_joined", &ChainModules::read_joined);
  py::class_<FusionCall, std::shared_ptr<FusionCall>>(m, "StackedFusionCall")
      .def_readwrite("together", &FusionCall::together)
      .def("alike", &FusionCall::alike)
      .def("has_dtype_of", &FusionCall::has_dtype_of)
      .def("misfit", &FusionCall::misfit)
      .def("run", &run_fusion, Unlocked());
  py::class_<FusionModules>(m, "StackedFusion", collectable<FusionModules>())
      .def(py::init<const std::vector<std::vector<FusionModules::GivenTerm>>&, size_t, int64_t>())
      .def("read", &FusionModules::read);
  py::class_<V2HeadCall, std::shared_ptr<V2HeadCall>>(m, "V2HeadCall").def("run", &run_v2_head, Unlocked());
  py::class_<V2HeadModules>(m, "V2Head", collectable<V2HeadModules>())
      .def(py::init<const Given&, const py::object&, int64_t>())
      .def("read", &V2HeadModules::read);
}

}  // namespace hrnet_fast::training
