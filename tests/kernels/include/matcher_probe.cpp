// SPDX-License-Identifier: Apache-2.0
// The tensor matcher on CPU tensors: what a binding's checks say, without a kernel behind them.
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/function.h>

#include "tensor_matcher.h"

namespace {

using dfi::Call;
using dfi::Rows;
using dfi::Size;
using dfi::TensorView;

// Rows and the distance between them.
tvm::ffi::Shape match_rows(TensorView input, TensorView weight) {
  Call call(kDLCPU);
  Size hidden_size{"hidden_size"};
  const Rows rows = call.tensor("input", input).floating().rows(hidden_size);
  call.tensor("weight", weight).floating().shape({hidden_size}).contiguous();
  return tvm::ffi::Shape({rows.num_rows, rows.row_stride});
}

bool match_table(TensorView positions, TensorView table) {
  Call call(kDLCPU);
  Size num_tokens{"num_tokens"}, max_position{"max_position"}, rotary_dim{"rotary_dim"};
  bool is_int64 = false;
  call.tensor("positions", positions).integers(is_int64).shape({num_tokens});
  call.tensor("table", table).float32().shape({max_position, rotary_dim}).last_dim_contiguous();
  return is_int64;
}

void match_square(TensorView a) {
  Call call(kDLCPU);
  Size n{"n"}, pair{"pair", 2};
  call.tensor("a", a).floating().shape({pair, n, n});
}

void match_cuda(TensorView input) { Call().tensor("input", input); }

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(match_rows, match_rows);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(match_table, match_table);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(match_square, match_square);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(match_cuda, match_cuda);
