// SPDX-License-Identifier: Apache-2.0
// Binding of SiLU-and-mul.
#include "silu_and_mul.h"

#include <tvm/ffi/function.h>

#include <climits>

#include "../include/tensor_matcher.h"

namespace dfi::activation {
namespace {

void silu_and_mul(TensorView out, TensorView input, bool pdl) {
  Call call;
  Size twice_d{"2 * d"};
  const Rows input_rows = call.tensor("input", input).floating().rows(twice_d);
  if (twice_d.value % 2 || twice_d.value / 2 > INT_MAX) {
    refuse("input", "[..., 2 * d], d below 2^31", "a last dimension of " + std::to_string(twice_d.value));
  }
  Size d{"d", twice_d.value / 2};
  const Rows out_rows = call.tensor("out", out).floating().rows(d);
  check_same_rows("out", out_rows, "input", input_rows);
  SiluAndMulParams params = {};
  params.input = input_rows.ptr;
  params.out = out_rows.ptr;
  params.num_rows = input_rows.num_rows;
  params.input_stride = input_rows.row_stride;
  params.out_stride = out_rows.row_stride;
  params.d = static_cast<int>(d.value);
  check_launch("silu_and_mul", launch_silu_and_mul(params, call.dtype(), call.device(), call.stream(), pdl));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_and_mul, silu_and_mul);

}  // namespace dfi::activation
