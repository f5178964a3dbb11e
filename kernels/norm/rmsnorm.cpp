// SPDX-License-Identifier: Apache-2.0
// Binding of RMSNorm.
#include "rmsnorm.h"

#include <tvm/ffi/function.h>

#include <climits>

#include "../include/tensor_matcher.h"

namespace dfi::norm {
namespace {

RmsNormParams params_of(const Rows& input, const Rows& out, const TensorView& weight, const Size& hidden_size, double eps) {
  RmsNormParams params = {};
  if (hidden_size.value > INT_MAX) refuse("input", "a last dimension below 2^31", std::to_string(hidden_size.value));
  params.input = input.ptr;
  params.weight = weight.data_ptr();
  params.out = out.ptr;
  params.num_rows = input.num_rows;
  params.input_stride = input.row_stride;
  params.out_stride = out.row_stride;
  params.hidden_size = static_cast<int>(hidden_size.value);
  params.eps = static_cast<float>(eps);
  return params;
}

void rmsnorm(TensorView out, TensorView input, TensorView weight, double eps, bool pdl) {
  Call call;
  Size hidden_size{"hidden_size"};
  const Rows input_rows = call.tensor("input", input).floating().rows(hidden_size);
  call.tensor("weight", weight).floating().shape({hidden_size}).contiguous();
  const Rows out_rows = call.tensor("out", out).floating().rows(hidden_size);
  check_same_rows("out", out_rows, "input", input_rows);
  const RmsNormParams params = params_of(input_rows, out_rows, weight, hidden_size, eps);
  check_launch("rmsnorm", launch_rmsnorm(params, call.dtype(), call.device(), call.stream(), pdl));
}

void fused_add_rmsnorm(TensorView input, TensorView residual, TensorView weight, double eps, bool pdl) {
  Call call;
  Size hidden_size{"hidden_size"};
  const Rows input_rows = call.tensor("input", input).floating().rows(hidden_size);
  const Rows residual_rows = call.tensor("residual", residual).floating().rows(hidden_size);
  check_same_rows("residual", residual_rows, "input", input_rows);
  call.tensor("weight", weight).floating().shape({hidden_size}).contiguous();
  RmsNormParams params = params_of(input_rows, input_rows, weight, hidden_size, eps);
  params.residual = residual_rows.ptr;
  params.residual_stride = residual_rows.row_stride;
  check_launch("fused_add_rmsnorm", launch_rmsnorm(params, call.dtype(), call.device(), call.stream(), pdl));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rmsnorm, rmsnorm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(fused_add_rmsnorm, fused_add_rmsnorm);

}  // namespace dfi::norm
