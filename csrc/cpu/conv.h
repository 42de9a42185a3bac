// Convolutions of the inference engine: 1x1 and 3x3, bias, residual and ReLU in one pass, on maps with a halo of zeros.
//
// A map is [N, H, W, C] in memory with one pixel of zeros ("halo") after every row and one row of them after every
// image: a row is W + 1 pixels, an image (H + 1) rows. Before the first image there is a lead of W + 2 zero pixels, and
// after the last one a slack of 16 + W + 2 readable pixels whose values do not matter. The pixel before a row is
// the halo of the previous row, so a 3x3 window needs no special case at an edge. A map may be a channel slice of a
// wider one: `pixel` is then larger than its channels. Writers of a map leave its halo unchanged; `clear_halo` writes
// the zeros.

#pragma once

#include <cstdint>

namespace hrnet_fast::cpu {

enum class Element : int { float32 = 0, bfloat16 = 1 };

// Layout of a map, in elements. `data` is channel 0 of pixel (0, 0) of image 0 of the slice.
struct Map {
  void* data = nullptr;
  int64_t pixel = 0;  // stride of pixels: channels of the whole buffer
  int64_t n = 0, height = 0, width = 0;
  int64_t row() const { return (width + 1) * pixel; }
  int64_t image() const { return (height + 1) * row(); }
};

// Elements of a buffer of `pixel` channels: lead, images with halos, slack. Channel 0 of pixel (0, 0) is
// `map_lead` elements after its start.
int64_t map_elements(int64_t n, int64_t height, int64_t width, int64_t pixel);
int64_t map_lead(int64_t width, int64_t pixel);
// Writes zeros to the halo and lead of a slice of `channels`: all elements outside the image that a 3x3 window reads.
// Stored outputs do not depend on the slack or on channels beside the slice.
void clear_halo(const Map& map, int64_t channels, Element type);

struct ConvShape {
  int64_t in_channels, out_channels;
  int kernel;                    // 1 (padding 0) or 3 (padding 1)
  int stride;                    // 1 or 2
  int64_t relu_begin, relu_end;  // output channels that pass a ReLU, after the residual; equal: none
  Element type;                  // of inputs, outputs, residual; sums are float32
  // Promises that every input's `pixel` is `in_channels`: the three taps of a window's row are then one run of memory,
  // which fills the matrix units better where channels are no multiple of 32. False is right for any input.
  bool dense_input = false;
};

// Weights as the kernels read them. `pack` takes contiguous float32 [out, in, kernel, kernel] and bias [out].
struct PackedConv;  // owns 64-byte aligned memory; opaque
PackedConv* pack_conv(const ConvShape& shape, const float* weight, const float* bias);
void repack_conv(PackedConv& packed, const float* weight, const float* bias);  // same shape, new values
void free_conv(PackedConv* packed);

struct ConvJob {
  const PackedConv* packed = nullptr;
  Map in, out;
  Map residual;  // data null: none. Same size as out; added before the ReLU, in float32
};

// A job is divided into items that any threads may run in any order; items write disjoint outputs.
int64_t conv_items(const ConvJob& job);
void conv_item(const ConvJob& job, int64_t item);
// Releases the calling thread's matrix tiles, which the system would otherwise save at context switches. Optional.
void conv_release();
// The kernel that `pack_conv` selects on this processor: "amx", "avx512", "portable". HRNET_FAST_CPU_KERNEL set to one
// of them requests that one, or the next simpler one that the processor supports; it is read whenever weights are
// packed.
//
// In bfloat16 with vector or matrix instructions, numbers below 1.2e-38 count as zero, as the processor does. An
// infinity may become NaN: an element in two pieces of a run is multiplied by zero in one of them.
const char* conv_kernel(Element type);

}  // namespace hrnet_fast::cpu
