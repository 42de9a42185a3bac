// Cases that a host run of kernels reads from a file, and the results that it writes: 64-bit numbers and the bytes of
// buffers, in the order in which the programs read them.

#pragma once

#include <fstream>
#include <memory>
#include <vector>

#include "common.cuh"

namespace cuda = hrnet_fast::cuda;

struct Reader {
  std::ifstream file;
  template <typename T = int64_t>
  T number() {
    T value = 0;
    static_assert(sizeof value == 8);
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  int integer() { return static_cast<int>(number()); }
  // Each buffer is an allocation of its own, so that a sanitizer sees every step outside of it.
  template <typename T>
  T* buffer(std::vector<std::unique_ptr<char[]>>& kept, int64_t bytes) {
    if (bytes == 0) return nullptr;
    kept.emplace_back(new char[bytes]);
    file.read(kept.back().get(), bytes);
    return reinterpret_cast<T*>(kept.back().get());
  }
};

struct Writer {
  std::ofstream file;
  void number(int64_t value) { file.write(reinterpret_cast<const char*>(&value), sizeof value); }
  template <typename T>
  void values(const T* data, int64_t count) {
    file.write(reinterpret_cast<const char*>(data), count * static_cast<int64_t>(sizeof(T)));
  }
};

// What a kernel writes to.
struct Memory {
  const char* data = nullptr;
  int64_t bytes = 0;
};

struct Case {
  Reader& in;
  Writer& out;
  std::vector<std::unique_ptr<char[]>> kept;
  std::vector<Memory> results;  // of the maps of results, in the order in which they were read

  template <typename T>
  cuda::Map<T> map(bool is_result = false) {
    const int64_t bytes = in.number(), offset = in.number(), image_step = in.number(), step = in.number();
    T* data = in.buffer<T>(kept, bytes);
    if (is_result) results.push_back({reinterpret_cast<const char*>(data), bytes});
    return {data == nullptr ? nullptr : data + offset, image_step, step};
  }
  template <typename M>
  M* channels(int64_t count) {
    return in.number() != 0 ? in.buffer<M>(kept, count * static_cast<int64_t>(sizeof(M))) : nullptr;
  }
};

inline void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "launch refused\n");
  std::exit(3);
}

// Reads the cases of `arguments[1]` and writes to `arguments[2]`. A case begins with its operation and type; `run` gets
// the operation and a null pointer of the type.
template <typename Run>
int run_cases(char** arguments, const Run& run) {
  Reader in{std::ifstream(arguments[1], std::ios::binary)};
  Writer out{std::ofstream(arguments[2], std::ios::binary)};
  const int64_t count = in.number();
  for (int64_t i = 0; i < count; ++i) {
    Case c{in, out, {}, {}};
    const int operation = in.integer();
    switch (in.number()) {
      case 0:
        run(c, operation, static_cast<double*>(nullptr));
        break;
      case 1:
        run(c, operation, static_cast<float*>(nullptr));
        break;
      case 2:
        run(c, operation, static_cast<__nv_bfloat16*>(nullptr));
        break;
      default:
        run(c, operation, static_cast<__half*>(nullptr));
    }
    if (!in.file || !out.file) return 4;
  }
  std::printf("%lld cases, %ld barriers\n", static_cast<long long>(count), shim::barriers);
  return 0;
}
