// Runs the kernels of csrc/cpu/picture_kernels.h: `pictures_host CASES RESULTS`. The test that builds this states the
// format: 64-bit numbers and the bytes of buffers, in the order in which they are read below.

#include "../../csrc/cpu/picture_kernels.h"

#define HF_CUDA_SHIM "cuda_shim.h"
#include "cases.h"

namespace {

namespace cpu = hrnet_fast::cpu;

// A picture in an allocation that ends with its last pixel.
cpu::Picture picture(Case& c) {
  cpu::Picture p{};
  p.height = c.in.number();
  p.width = c.in.number();
  p.pixel = c.in.number();
  p.row = c.in.number();
  p.data = c.in.buffer<uint8_t>(c.kept, (p.height - 1) * p.row + p.width * p.pixel);
  return p;
}

// Three planes, each in an allocation of its own.
struct Planes {
  std::vector<std::unique_ptr<uint8_t[]>> planes;
  int64_t size;
  Planes(int64_t count, int64_t pixels) : size(pixels) {
    for (int64_t c = 0; c < count; ++c) planes.emplace_back(new uint8_t[pixels]);
  }
  void write(Case& c) const {
    for (const auto& plane : planes) c.out.values(plane.get(), size);
  }
};

void warp(Case& c) {
  const cpu::Picture p = picture(c);
  const int64_t height = c.in.number(), width = c.in.number(), wide = cpu::blocks(width);
  const bool flip = c.in.number() != 0;
  const auto* across = c.in.buffer<int32_t>(c.kept, 2 * wide * 4);
  const auto* down = c.in.buffer<int32_t>(c.kept, 2 * height * 4);
  const Planes made(3, height * width);
  for (int64_t y = 0; y < height; ++y) {
    const int64_t later = std::min<int64_t>(y + 8, height - 1), at = y * width;
    cpu::warp_row(p, {across,
                      across + wide,
                      down[y],
                      down[height + y],
                      down[later],
                      down[height + later],
                      flip,
                      width,
                      {made.planes[0].get() + at, made.planes[1].get() + at, made.planes[2].get() + at}});
  }
  made.write(c);
}

cpu::Axis axis(Case& c, int64_t length) {
  const auto* table = c.in.buffer<int32_t>(c.kept, 4 * length * 4);
  return {table, table + length, table + 2 * length, table + 3 * length};
}

void resize(Case& c) {
  const cpu::Picture p = picture(c);
  const int64_t height = c.in.number(), width = c.in.number(), wide = cpu::blocks(width);
  const cpu::Axis rows = axis(c, height), columns = axis(c, width);
  const Planes made(p.pixel == 1 ? 1 : 3, height * width);
  std::vector<std::unique_ptr<int32_t[]>> lines;
  for (int k = 0; k < 2; ++k) lines.emplace_back(new int32_t[3 * wide]);
  for (int64_t y = 0; y < height; ++y) {
    if (p.pixel == 1) {
      cpu::pick_row(p, rows.first[y], columns, 7, width, made.planes[0].get() + y * width);
      continue;
    }
    cpu::resize_row(p, rows.first[y], columns, width, lines[0].get());
    cpu::resize_row(p, rows.second[y], columns, width, lines[1].get());
    for (int64_t k = 0; k < 3; ++k)
      cpu::join_rows(lines[0].get() + k * wide, lines[1].get() + k * wide, rows.share[y], columns.inside, width,
                     made.planes[k].get() + y * width);
  }
  made.write(c);
}

void normalize(Case& c) {
  const int64_t count = c.in.number();
  const auto* pixels = c.in.buffer<uint8_t>(c.kept, count);
  const std::unique_ptr<float[]> made(new float[count]);
  cpu::normalize_values(pixels, count, 0.25f, 0.5f, made.get());
  c.out.values(made.get(), count);
}

}  // namespace

int main(int, char** arguments) {
  return run_cases(arguments, [](Case& c, int operation, auto*) {
    if (operation == 0) warp(c);
    if (operation == 1) resize(c);
    if (operation == 2) normalize(c);
  });
}
