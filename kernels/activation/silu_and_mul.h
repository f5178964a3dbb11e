// SPDX-License-Identifier: Apache-2.0
// The launcher of SiLU-and-mul, plain C++: what binding and device code share.
#pragma once

#include <cstdint>

#include "../include/dtype.h"

namespace dfi::activation {

struct SiluAndMulParams {
  const void* input;     // [num_rows, 2 * d]: gate, then up
  void* out;             // [num_rows, d]
  int64_t num_rows;
  int64_t input_stride;  // elements between rows
  int64_t out_stride;
  int d;
  int blocks_per_row;    // set by the launcher
  bool triggers_early;   // set by the launcher: lets the next kernel start at once (one wave of blocks or less)
  bool is_streaming;     // set by the launcher: the result is larger than L2 keeps
};

// Launches on `device` into `stream`; with `pdl` as a programmatic dependent launch (sm_90 and up).
// Returns nullptr, or CUDA's text of what went wrong. Zero rows launch nothing.
const char* launch_silu_and_mul(SiluAndMulParams params, DType dtype, int device, void* stream, bool pdl);

}  // namespace dfi::activation
