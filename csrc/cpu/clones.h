// Function multiversioning: one binary with kernels for several instruction sets.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace hrnet_fast::cpu {
// The instruction set that the loader selected for multiversioned kernels.
const char* instruction_set();
}  // namespace hrnet_fast::cpu

// The loader selects a clone by the features of the processor. An architecture name such as skylake-avx512 would match
// that one model only. On other platforms the compiler's default is used.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define HF_MULTIVERSIONED 1
#if __GNUC__ >= 12
#define HF_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HF_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define HF_CLONES
#endif

// Compiles `body(job, begin, end)` for every element type and instruction set, as overloads of `name`. Templates cannot
// be cloned, so this is a macro.
#define HF_MULTIVERSION(name, body, Job)                                                                    \
  HF_CLONES void name(const Job<float>& job, int64_t begin, int64_t end) { body(job, begin, end); }         \
  HF_CLONES void name(const Job<double>& job, int64_t begin, int64_t end) { body(job, begin, end); }        \
  HF_CLONES void name(const Job<c10::BFloat16>& job, int64_t begin, int64_t end) { body(job, begin, end); } \
  HF_CLONES void name(const Job<c10::Half>& job, int64_t begin, int64_t end) { body(job, begin, end); }
