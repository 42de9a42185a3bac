// Building, checking and running programs.

#include "program.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "team.h"

namespace hrnet_fast::cpu {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kItemBytes = 32 * 1024;  // approximate output of one item of an elementwise step

int64_t element_bytes(Element type) { return type == Element::float32 ? 4 : 2; }

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("Program: " + message);
}

}  // namespace

int64_t map_bytes(Element type, int64_t n, int64_t height, int64_t width, int64_t channels) {
  const int64_t bytes = map_elements(n, height, width, channels) * element_bytes(type);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

int64_t Program::buffer(int64_t offset_bytes, int64_t n, int64_t height, int64_t width, int64_t channels) {
  require(!finished_, "it is finished; no buffer can be added");
  require(offset_bytes >= 0 && offset_bytes % kAlignment == 0, "a buffer's offset is a multiple of 64 bytes");
  require(n >= 0 && height > 0 && width > 0 && channels > 0, "a buffer has positive sizes");
  // Sizes may come from files: a size that overflows must not wrap around to a valid one.
  const double elements = (n + 1.0) * (height + 2.0) * (width + 20.0) * channels;
  require(elements < 0x1p48 && std::max(height, width) < INT32_MAX, "a buffer is too large");
  buffers_.push_back({offset_bytes, n, height, width, channels});
  return static_cast<int64_t>(buffers_.size()) - 1;
}

void Program::check_place(Place place, int64_t channels, const char* what) const {
  require(place.buffer >= 0 && place.buffer < static_cast<int64_t>(buffers_.size()),
          std::string(what) + ": no such buffer");
  const Buffer& b = buffers_[place.buffer];
  require(channels > 0 && channels <= b.channels && place.offset >= 0 && place.offset <= b.channels - channels,
          std::string(what) + ": channels outside of their buffer");
}

// An input that a step reads at other positions than it writes must not overlap its output.
void Program::check_apart(Place in, int64_t in_channels, Place out, int64_t channels, const char* what) const {
  const bool apart =
      in.buffer != out.buffer || in.offset + in_channels <= out.offset || out.offset + channels <= in.offset;
  require(apart, std::string(what) + ": it would write over its input");
}

// An input that a step reads at the positions it writes must equal its output or not overlap it.
void Program::check_over(Place in, Place out, int64_t channels, const char* what) const {
  if (in.buffer != out.buffer || in.offset != out.offset) check_apart(in, channels, out, channels, what);
}

void Program::add(Step step) {
  require(!finished_, "it is finished; no step can be added");
  require(step.wave >= 0 && (steps_.empty() || step.wave >= steps_.back().wave), "waves come in ascending order");
  steps_.push_back(std::move(step));
}

void Program::input(int64_t wave, Place out, int64_t index, int64_t channels, std::vector<float> scale,
                    std::vector<float> shift) {
  check_place(out, channels, "input");
  require(index >= 0, "input: no such tensor");
  require(scale.size() == shift.size() && (scale.empty() || static_cast<int64_t>(scale.size()) == channels),
          "input: one scale and shift per channel");
  Step step{Kind::input, wave};
  step.out = out, step.channels = channels, step.index = index;
  step.scale = std::move(scale), step.shift = std::move(shift);
  add(std::move(step));
}

void Program::conv(int64_t wave, Weights weights, const ConvShape& shape, Place in, Place out, const Place* residual) {
  require(weights != nullptr && shape.type == type_, "conv: weights of the program's type");
  check_place(in, shape.in_channels, "conv: input");
  check_place(out, shape.out_channels, "conv: output");
  check_apart(in, shape.in_channels, out, shape.out_channels, "conv");
  const Buffer &from = buffers_[in.buffer], &to = buffers_[out.buffer];
  require(to.n == from.n && to.height == (from.height - 1) / shape.stride + 1 &&
              to.width == (from.width - 1) / shape.stride + 1,
          "conv: sizes of input and output");
  require(!shape.dense_input || from.channels == shape.in_channels, "conv: its input is a slice");
  Step step{Kind::conv, wave};
  step.in = in, step.out = out, step.channels = shape.out_channels, step.weights = std::move(weights);
  if (residual != nullptr) {
    check_place(*residual, shape.out_channels, "conv: residual");
    const Buffer& b = buffers_[residual->buffer];
    require(b.n == to.n && b.height == to.height && b.width == to.width, "conv: size of the residual");
    check_over(*residual, out, shape.out_channels, "conv: residual");
    step.residual = *residual;
  }
  add(std::move(step));
}

void Program::sum(int64_t wave, const std::vector<TermPlace>& terms, Place out, int64_t channels, bool relu) {
  check_place(out, channels, "sum: output");
  require(!terms.empty() && terms.size() <= 8, "sum: one to eight terms");
  Step step{Kind::sum, wave};
  step.out = out, step.channels = channels, step.relu = relu, step.terms = terms;
  const Buffer& to = buffers_[out.buffer];
  for (const TermPlace& term : terms) {
    check_place(term.place, channels, "sum: term");
    const Buffer& from = buffers_[term.place.buffer];
    require(from.n == to.n, "sum: images of a term");
    const bool identity = term.mode == "identity";
    require(identity || term.mode == "nearest" || term.mode == "bilinear", "sum: no mode " + term.mode);
    require(!identity || (from.height == to.height && from.width == to.width), "sum: size of a term");
    if (identity) {
      check_over(term.place, out, channels, "sum");
    } else {
      check_apart(term.place, channels, out, channels, "sum");
    }
    const Resample mode = term.mode == "nearest" ? Resample::kNearest
                          : term.align_corners   ? Resample::kBilinearAligned
                                                 : Resample::kBilinear;
    step.rows.push_back(identity ? nullptr : std::make_shared<Axis>(mode, from.height, to.height));
    step.columns.push_back(identity ? nullptr : std::make_shared<Axis>(mode, from.width, to.width));
  }
  add(std::move(step));
}

void Program::avg_pool(int64_t wave, Place in, Place out, int64_t channels, int64_t size) {
  check_place(in, channels, "avg_pool: input");
  check_place(out, channels, "avg_pool: output");
  check_apart(in, channels, out, channels, "avg_pool");
  const Buffer &from = buffers_[in.buffer], &to = buffers_[out.buffer];
  require(size > 0 && to.n == from.n && to.height == from.height / size && to.width == from.width / size,
          "avg_pool: sizes");
  Step step{Kind::pool, wave};
  step.in = in, step.out = out, step.channels = channels, step.size = size;
  add(std::move(step));
}

void Program::output(int64_t wave, Place in, int64_t channels, int64_t index) {
  check_place(in, channels, "output");
  require(index >= 0, "output: no such tensor");
  Step step{Kind::output, wave};
  step.in = in, step.channels = channels, step.index = index;
  add(std::move(step));
}

void Program::finish(int64_t arena_bytes) {
  require(!finished_, "it is finished already");
  for (const Buffer& b : buffers_) {
    const int64_t size = map_bytes(type_, b.n, b.height, b.width, b.channels);
    require(size <= arena_bytes && b.offset <= arena_bytes - size, "a buffer outside of the arena");
  }
  for (size_t k = 0; k < steps_.size(); ++k) {
    Step& step = steps_[k];
    if (waves_.empty() || step.wave != steps_[k - 1].wave) waves_.emplace_back();
    waves_.back().push_back(static_cast<int64_t>(k));
    const Buffer& b = buffers_[step.kind == Kind::output ? step.in.buffer : step.out.buffer];
    if (step.kind == Kind::conv) {
      ConvJob job;
      job.packed = step.weights.get();
      job.in = map(step.in, nullptr), job.out = map(step.out, nullptr);
      step.items = conv_items(job);
    } else {
      const int64_t rows = b.n * b.height, each = rows_per_item(step);
      step.items = (rows + each - 1) / each;
    }
  }
  // Large steps first, so that the remaining items at the end of a wave are small.
  for (auto& wave : waves_) {
    std::stable_sort(wave.begin(), wave.end(), [&](int64_t a, int64_t b) { return steps_[a].items > steps_[b].items; });
    int64_t items = 0;
    for (const int64_t k : wave) items += steps_[k].items;
    wave_items_.push_back(items);
  }
  arena_bytes_ = arena_bytes;
  finished_ = true;
}

int64_t Program::rows_per_item(const Step& step) const {
  const Buffer& b = buffers_[step.kind == Kind::output ? step.in.buffer : step.out.buffer];
  return std::max<int64_t>(1, kItemBytes / (b.width * step.channels * element_bytes(type_)));
}

Map Program::map(Place place, char* arena) const {
  const Buffer& b = buffers_[place.buffer];
  Map found;
  found.pixel = b.channels, found.n = b.n, found.height = b.height, found.width = b.width;
  const int64_t start = map_lead(b.width, b.channels) + place.offset;
  found.data = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(arena) + b.offset + start * element_bytes(type_));
  return found;
}

void Program::check_given(const std::vector<Given>& inputs, const std::vector<Given>& outputs) const {
  require(finished_, "finish() it first");
  for (const Step& step : steps_) {
    if (step.kind != Kind::input && step.kind != Kind::output) continue;
    const bool in = step.kind == Kind::input;
    const std::vector<Given>& given = in ? inputs : outputs;
    const std::string what = std::string(in ? "input " : "output ") + std::to_string(step.index);
    require(step.index < static_cast<int64_t>(given.size()), what + " is missing");
    const Given& g = given[step.index];
    const Buffer& b = buffers_[in ? step.out.buffer : step.in.buffer];
    require(g.n == b.n && g.channels == step.channels && g.height == b.height && g.width == b.width,
            what + " has another shape than its map");
    require(in || g.plane.type != Scalar::uint8, what + " cannot be bytes");
  }
}

std::vector<Program::Job> Program::resolve(const std::vector<Given>& inputs, const std::vector<Given>& outputs,
                                           char* arena) const {
  std::vector<Job> jobs(steps_.size());
  for (size_t k = 0; k < steps_.size(); ++k) {
    const Step& step = steps_[k];
    Job& job = jobs[k];
    switch (step.kind) {
      case Kind::input:
        job.import_ = {inputs[step.index].plane, map(step.out, arena), step.channels,
                       step.scale.empty() ? nullptr : step.scale.data(), step.shift.data()};
        break;
      case Kind::conv:
        job.conv.packed = step.weights.get();
        job.conv.in = map(step.in, arena), job.conv.out = map(step.out, arena);
        if (step.residual.buffer >= 0) job.conv.residual = map(step.residual, arena);
        break;
      case Kind::sum:
        for (size_t t = 0; t < step.terms.size(); ++t)
          job.terms.push_back({map(step.terms[t].place, arena), step.rows[t].get(), step.columns[t].get(),
                               step.terms[t].mode == "nearest"});
        job.sum = {job.terms.data(), static_cast<int64_t>(job.terms.size()), map(step.out, arena), step.channels,
                   step.relu};
        break;
      case Kind::pool:
        job.pool = {map(step.in, arena), map(step.out, arena), step.channels, step.size};
        break;
      case Kind::output:
        job.export_ = {map(step.in, arena), outputs[step.index].plane, step.channels};
        break;
    }
  }
  return jobs;
}

void Program::run_item(const Step& step, const Job& job, int64_t item) const {
  // Maps share arena memory, so the writer of a map also writes its halo.
  if (item == 0 && step.kind != Kind::output)
    clear_halo(step.kind == Kind::conv   ? job.conv.out
               : step.kind == Kind::sum  ? job.sum.out
               : step.kind == Kind::pool ? job.pool.out
                                         : job.import_.out,
               step.channels, type_);
  if (step.kind == Kind::conv) return conv_item(job.conv, item);
  const Buffer& b = buffers_[step.kind == Kind::output ? step.in.buffer : step.out.buffer];
  const int64_t each = rows_per_item(step), begin = item * each, end = std::min(begin + each, b.n * b.height);
  switch (step.kind) {
    case Kind::input:
      return import_rows(job.import_, type_, begin, end);
    case Kind::sum:
      return sum_rows(job.sum, type_, begin, end);
    case Kind::pool:
      return pool_rows(job.pool, type_, begin, end);
    default:
      return export_rows(job.export_, type_, begin, end);
  }
}

void Program::run(const std::vector<Given>& inputs, const std::vector<Given>& outputs, char* arena, int threads) const {
  check_given(inputs, outputs);
  const std::vector<Job> jobs = resolve(inputs, outputs, arena);
  run_waves(
      wave_items_, threads,
      [&](int64_t wave, int64_t item) {
        for (const int64_t k : waves_[wave]) {
          if (item < steps_[k].items) return run_item(steps_[k], jobs[k], item);
          item -= steps_[k].items;
        }
      },
      [] { conv_release(); });
}

std::vector<StepTime> Program::profile(const std::vector<Given>& inputs, const std::vector<Given>& outputs, char* arena,
                                       int threads) const {
  using Clock = std::chrono::steady_clock;
  check_given(inputs, outputs);
  const std::vector<Job> jobs = resolve(inputs, outputs, arena);
  std::vector<StepTime> times;
  for (size_t k = 0; k < steps_.size(); ++k) {
    const auto start = Clock::now();
    run_waves(
        {steps_[k].items}, threads, [&](int64_t, int64_t item) { run_item(steps_[k], jobs[k], item); },
        [] { conv_release(); });
    times.push_back({static_cast<int64_t>(k), std::chrono::duration<double>(Clock::now() - start).count()});
  }
  return times;
}

}  // namespace hrnet_fast::cpu
