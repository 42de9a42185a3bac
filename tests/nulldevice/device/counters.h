// The counters of the null device. Names and order are those of NAMES in counters.py.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

struct Counters {
  std::atomic<uint64_t> launches, launches_beyond_device_0, library_launches, captured_nodes, stray_operations, memcpys,
      to_host, bytes_to_host, memsets, allocations, frees, host_allocations, synchronizations, captures,
      captures_invalidated, graph_instantiations, graph_launches, graph_kernels_launched, last_graph_nodes,
      last_graph_kernels, module_loads, errors;
  // Gauges, which a reset leaves as they are.
  std::atomic<uint64_t> live_allocations, live_bytes, live_host_allocations, live_streams, live_events, live_graphs,
      live_graph_execs, live_modules;
};
constexpr size_t kResettable = 22;

// Counts one kernel of cuBLAS, cuDNN or another library, launched on a cudaStream_t.
void count_library_launch(void* stream, const char* name);
