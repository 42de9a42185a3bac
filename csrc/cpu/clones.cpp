#include "clones.h"

namespace hrnet_fast::cpu {

#if defined(HF_MULTIVERSIONED) && __GNUC__ >= 12
// Resolved by the same rule as the kernels' clones.
__attribute__((target("arch=x86-64-v4"))) const char* chosen() { return "x86-64-v4 (AVX-512)"; }
__attribute__((target("arch=x86-64-v3"))) const char* chosen() { return "x86-64-v3 (AVX2)"; }
__attribute__((target("default"))) const char* chosen() { return "baseline"; }
#elif defined(HF_MULTIVERSIONED)
__attribute__((target("avx512f"))) const char* chosen() { return "AVX-512"; }
__attribute__((target("avx2"))) const char* chosen() { return "AVX2"; }
__attribute__((target("default"))) const char* chosen() { return "baseline"; }
#else
const char* chosen() { return "the compiler's choice"; }
#endif

const char* instruction_set() { return chosen(); }

}  // namespace hrnet_fast::cpu
