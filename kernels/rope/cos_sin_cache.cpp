// SPDX-License-Identifier: Apache-2.0
// Binding of the rotary embedding from a table.
#include "cos_sin_cache.h"

#include <tvm/ffi/function.h>

#include "../include/tensor_matcher.h"

namespace dfi::rope {
namespace {

// [num_tokens, num_heads * head_size] or [num_tokens, num_heads, head_size].
Heads match_heads(Call& call, const char* name, const TensorView& x, Size& num_tokens, int64_t head_size) {
  Size num_heads{"num_heads"}, size{"head_size", head_size}, width{"num_heads * head_size"};
  TensorMatch match = call.tensor(name, x);
  match.floating().last_dim_contiguous();
  if (x.ndim() == 3) {
    match.shape({num_tokens, num_heads, size});
    return Heads{x.data_ptr(), stride_of(x, 0), stride_of(x, 1), static_cast<int>(num_heads.value)};
  }
  match.shape({num_tokens, width});
  if (width.value % head_size) {
    refuse(name, "a last dimension that is a multiple of head_size=" + std::to_string(head_size),
           std::to_string(width.value));
  }
  return Heads{x.data_ptr(), stride_of(x, 0), head_size, static_cast<int>(width.value / head_size)};
}

void apply_rope_with_cos_sin_cache_inplace(TensorView positions, TensorView query, TensorView key, int64_t head_size,
                                           TensorView cos_sin_cache, bool is_neox, bool pdl) {
  if (head_size < 1) refuse("head_size", "an integer >= 1", std::to_string(head_size));
  Call call;
  Size num_tokens{"num_tokens"}, max_position{"max_position"}, rotary_dim{"rotary_dim"};
  RopeParams params = {};
  params.query = match_heads(call, "query", query, num_tokens, head_size);
  params.key = match_heads(call, "key", key, num_tokens, head_size);
  call.tensor("positions", positions).integers(params.is_position_int64).shape({num_tokens});
  call.tensor("cos_sin_cache", cos_sin_cache).float32().shape({max_position, rotary_dim}).last_dim_contiguous();
  if (rotary_dim.value % 2 || rotary_dim.value < 2 || rotary_dim.value > head_size) {
    refuse("cos_sin_cache", "rotary_dim even and in [2, head_size=" + std::to_string(head_size) + "]",
           std::to_string(rotary_dim.value));
  }
  params.positions = positions.data_ptr();
  params.cos_sin_cache = static_cast<const float*>(cos_sin_cache.data_ptr());
  params.num_tokens = num_tokens.value;
  params.position_stride = stride_of(positions, 0);
  params.cache_stride = stride_of(cos_sin_cache, 0);
  params.max_position = max_position.value;
  params.rotary_dim = static_cast<int>(rotary_dim.value);
  params.is_interleaved = !is_neox;
  check_launch("apply_rope_with_cos_sin_cache_inplace",
               launch_rope(params, call.dtype(), call.device(), call.stream(), pdl));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(apply_rope_with_cos_sin_cache_inplace, apply_rope_with_cos_sin_cache_inplace);

}  // namespace dfi::rope
