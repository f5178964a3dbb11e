// SPDX-License-Identifier: Apache-2.0
// Binding of the page append.
#include "append.h"

#include <tvm/ffi/function.h>

#include <climits>

#include "../include/tensor_matcher.h"

namespace dfi::kv_cache {
namespace {

struct Sizes {
  Size num_tokens{"nnz"}, num_heads{"num_kv_heads"}, num_pages{"num_pages"}, page_size{"page_size"};
};

AppendSide match_side(Call& call, const char* tokens_name, const TensorView& tokens, const char* cache_name,
                      const TensorView& cache, Sizes& sizes) {
  Size head_dim{"head_dim"};
  call.tensor(cache_name, cache).floating().shape({sizes.num_pages, sizes.page_size, sizes.num_heads, head_dim})
      .last_dim_contiguous();
  call.tensor(tokens_name, tokens).floating().shape({sizes.num_tokens, sizes.num_heads, head_dim})
      .last_dim_contiguous();
  const int64_t bytes = cache.dtype().bits / 8;
  if (head_dim.value * bytes > INT_MAX) refuse(cache_name, "a head below 2 GiB", std::to_string(head_dim.value));
  AppendSide side = {};
  side.tokens = tokens.data_ptr();
  side.cache = cache.data_ptr();
  side.token_stride = stride_of(tokens, 0) * bytes;
  side.token_head_stride = stride_of(tokens, 1) * bytes;
  side.page_stride = stride_of(cache, 0) * bytes;
  side.entry_stride = stride_of(cache, 1) * bytes;
  side.cache_head_stride = stride_of(cache, 2) * bytes;
  side.head_bytes = static_cast<int>(head_dim.value * bytes);
  return side;
}

// The caches come as [num_pages, page_size, num_kv_heads, head_dim] views of either layout.
void append_with_slots(TensorView append_key, TensorView append_value, TensorView slots, TensorView k_cache,
                       TensorView v_cache, bool pdl) {
  Call call;
  Sizes sizes;
  AppendParams params = {};
  params.sides[0] = match_side(call, "append_key", append_key, "k_cache", k_cache, sizes);
  params.sides[1] = match_side(call, "append_value", append_value, "v_cache", v_cache, sizes);
  bool is_int64 = false;
  call.tensor("slots", slots).integers(is_int64).shape({sizes.num_tokens});
  if (!is_int64) refuse("slots", "dtype int64", "int32");
  if (sizes.page_size.value < 1 || sizes.page_size.value > INT_MAX) {
    refuse("page_size", "an integer >= 1 below 2^31", std::to_string(sizes.page_size.value));
  }
  params.slots = static_cast<const int64_t*>(slots.data_ptr());
  params.slot_stride = stride_of(slots, 0);
  params.num_tokens = sizes.num_tokens.value;
  params.num_slots = sizes.num_pages.value * sizes.page_size.value;
  params.page_size = static_cast<int>(sizes.page_size.value);
  params.num_heads = static_cast<int>(sizes.num_heads.value);
  const int element_bytes = k_cache.dtype().bits / 8;
  check_launch("append_with_slots", launch_append(params, element_bytes, call.device(), call.stream(), pdl));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(append_with_slots, append_with_slots);

}  // namespace dfi::kv_cache
