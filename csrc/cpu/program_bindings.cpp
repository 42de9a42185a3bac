// Python bindings of Program and PackedConv. They check tensors; the program itself uses addresses.

#include "program_bindings.h"

#include <ATen/ATen.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <tuple>

#include "program.h"

namespace py = pybind11;

namespace hrnet_fast::cpu {
namespace {

using Pair = std::pair<int64_t, int64_t>;

Element element(const std::string& name) {
  if (name == "float32") return Element::float32;
  if (name == "bfloat16") return Element::bfloat16;
  throw std::invalid_argument("Program: maps are float32 or bfloat16, not " + name);
}

Scalar scalar(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Scalar::float32;
    case at::kBFloat16:
      return Scalar::bfloat16;
    case at::kHalf:
      return Scalar::float16;
    case at::kByte:
      return Scalar::uint8;
    default:
      throw std::invalid_argument("Program: tensors are float32, bfloat16, float16 or bytes");
  }
}

// uint8 tensors are images [N, H, W, C], all others maps [N, C, H, W].
Given given(const at::Tensor& t) {
  if (t.dim() != 4 || !t.device().is_cpu())
    throw std::invalid_argument("Program: tensors have four dimensions, on the CPU");
  if (t.layout() != at::kStrided || t.is_neg() || t._is_zerotensor() || (t.numel() != 0 && t.data_ptr() == nullptr))
    throw std::invalid_argument("Program: tensors have memory that holds their values");
  const bool image = t.scalar_type() == at::kByte;
  const int n = 0, c = image ? 3 : 1, h = image ? 1 : 2, w = image ? 2 : 3;
  const Plane plane{t.data_ptr(), scalar(t.scalar_type()), t.stride(n), t.stride(c), t.stride(h), t.stride(w)};
  return {plane, t.size(n), t.size(c), t.size(h), t.size(w)};
}

std::vector<Given> given_all(const std::vector<at::Tensor>& tensors) {
  std::vector<Given> all;
  for (const at::Tensor& t : tensors) all.push_back(given(t));
  return all;
}

// The aligned start of an arena of the size that the program needs.
char* aligned(const Program& program, const at::Tensor& arena) {
  if (!arena.device().is_cpu() || arena.scalar_type() != at::kByte || !arena.is_contiguous())
    throw std::invalid_argument("Program: the arena is one contiguous run of bytes (torch.uint8), on the CPU");
  const auto address = reinterpret_cast<uintptr_t>(arena.data_ptr());
  const auto start = (address + 63) / 64 * 64;
  const int64_t room = arena.numel() - static_cast<int64_t>(start - address);
  if (room < program.arena_bytes())
    throw std::invalid_argument("Program: the arena has " + std::to_string(arena.numel()) +
                                " bytes; finish() was told " + std::to_string(program.arena_bytes()) +
                                ", and up to 63 go into its alignment");
  return reinterpret_cast<char*>(start);
}

int team(int threads) {
  if (threads < 1) throw std::invalid_argument("Program: at least one thread");
  return std::min(threads, 1024);  // failing to start a thread would end the process
}

// Packed weights, shared by several programs.
class PackedWeights {
 public:
  PackedWeights(const std::string& type, const at::Tensor& weight, const at::Tensor& bias, int64_t stride, Pair relu,
                bool dense)
      : shape_{0, 0, 0, 0, 0, 0, Element::float32, false} {
    if (weight.dim() != 4 || weight.size(2) != weight.size(3) || (weight.size(2) != 1 && weight.size(2) != 3) ||
        (stride != 1 && stride != 2) || weight.numel() == 0 || relu.first < 0 || relu.second > weight.size(0))
      throw std::invalid_argument(
          "PackedConv: weight [out, in, k, k] with k of 1 or 3, stride of 1 or 2, ReLU on channels that there are");
    shape_ = {weight.size(1),
              weight.size(0),
              static_cast<int>(weight.size(2)),
              static_cast<int>(stride),
              relu.first,
              relu.second,
              element(type),
              dense};
    check(weight, bias);
    packed_ = Weights(pack_conv(shape_, weight.data_ptr<float>(), bias.data_ptr<float>()), free_conv);
  }

  void set(const at::Tensor& weight, const at::Tensor& bias) {
    check(weight, bias);
    repack_conv(*packed_, weight.data_ptr<float>(), bias.data_ptr<float>());
  }

  const ConvShape& shape() const { return shape_; }
  const Weights& packed() const { return packed_; }

 private:
  void check(const at::Tensor& weight, const at::Tensor& bias) const {
    const bool fits = weight.scalar_type() == at::kFloat && bias.scalar_type() == at::kFloat &&
                      weight.device().is_cpu() && bias.device().is_cpu() && weight.is_contiguous() &&
                      bias.is_contiguous() && bias.numel() == shape_.out_channels &&
                      weight.sizes() == at::IntArrayRef({shape_.out_channels, shape_.in_channels,
                                                         int64_t{shape_.kernel}, int64_t{shape_.kernel}});
    if (!fits)
      throw std::invalid_argument("PackedConv: contiguous float32 weight and bias, of the shape it was made with");
  }

  ConvShape shape_;
  Weights packed_;
};

Place place(Pair pair) { return {pair.first, pair.second}; }

}  // namespace

void bind_program(py::module_& m) {
  m.def("map_bytes", [](const std::string& type, int64_t n, int64_t height, int64_t width, int64_t channels) {
    return map_bytes(element(type), n, height, width, channels);
  });
  m.def("conv_kernel", [](const std::string& type) { return conv_kernel(element(type)); });

  py::class_<PackedWeights, std::shared_ptr<PackedWeights>>(m, "PackedConv")
      .def(py::init<const std::string&, const at::Tensor&, const at::Tensor&, int64_t, Pair, bool>())
      .def("set", &PackedWeights::set);

  py::class_<Program>(m, "Program")
      .def(py::init([](const std::string& type) { return new Program(element(type)); }))
      .def("buffer", &Program::buffer)
      .def("input",
           [](Program& p, int64_t wave, Pair out, int64_t index, int64_t channels,
              const std::optional<std::vector<float>>& scale, const std::optional<std::vector<float>>& shift) {
             p.input(wave, place(out), index, channels, scale.value_or(std::vector<float>{}),
                     shift.value_or(std::vector<float>{}));
           })
      .def("conv",
           [](Program& p, int64_t wave, const PackedWeights& weights, Pair in, Pair out,
              const std::optional<Pair>& residual) {
             const Place added = residual ? place(*residual) : Place{-1, 0};
             p.conv(wave, weights.packed(), weights.shape(), place(in), place(out), residual ? &added : nullptr);
           })
      .def("sum",
           [](Program& p, int64_t wave, const std::vector<std::tuple<int64_t, int64_t, std::string, bool>>& terms,
              Pair out, int64_t channels, bool relu) {
             std::vector<TermPlace> places;
             for (const auto& [buffer, offset, mode, align] : terms) places.push_back({{buffer, offset}, mode, align});
             p.sum(wave, places, place(out), channels, relu);
           })
      .def("avg_pool", [](Program& p, int64_t wave, Pair in, Pair out, int64_t channels,
                          int64_t size) { p.avg_pool(wave, place(in), place(out), channels, size); })
      .def("output", [](Program& p, int64_t wave, Pair in, int64_t channels,
                        int64_t index) { p.output(wave, place(in), channels, index); })
      .def("finish", &Program::finish)
      .def("run",
           [](const Program& p, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs,
              const at::Tensor& arena, int threads) {
             const auto in = given_all(inputs), out = given_all(outputs);
             char* start = aligned(p, arena);
             py::gil_scoped_release release;
             p.run(in, out, start, team(threads));
           })
      .def("profile",
           [](const Program& p, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs,
              const at::Tensor& arena, int threads) {
             const auto in = given_all(inputs), out = given_all(outputs);
             char* start = aligned(p, arena);
             std::vector<std::pair<int64_t, double>> times;
             {
               py::gil_scoped_release release;
               for (const StepTime& t : p.profile(in, out, start, team(threads))) times.emplace_back(t.step, t.seconds);
             }
             return times;
           })
      .def_property_readonly("steps", &Program::steps)
      .def_property_readonly("waves", &Program::waves);
}

}  // namespace hrnet_fast::cpu
