// SPDX-License-Identifier: Apache-2.0
// 16-byte loads and stores with cache hints. Pointers must be 16-byte aligned.
//
// No ld.global.nc here: under programmatic dependent launch a kernel shares the machine with the writer of its
// inputs, and the non-coherent path promises nothing about writes made during the kernel's life.
#pragma once

#include <cstdint>

namespace dfi {

constexpr int kVecBytes = 16;

template <typename T>
constexpr int kVecSize = kVecBytes / static_cast<int>(sizeof(T));

enum class Cache {
  kDefault,
  kStreaming,  // read or written once: loads pass L1 by, stores leave L2 first
};

template <Cache kHint = Cache::kDefault>
__device__ __forceinline__ uint4 load_vec(const void* ptr) {
  uint4 v;
  if constexpr (kHint == Cache::kStreaming) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(ptr)
                 : "memory");
  } else {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(ptr)
                 : "memory");
  }
  return v;
}

template <Cache kHint = Cache::kDefault>
__device__ __forceinline__ void store_vec(void* ptr, const uint4& v) {
  if constexpr (kHint == Cache::kStreaming) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(ptr), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  } else {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(ptr), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

// As store_vec with a hint known only at run time; the branch is uniform.
__device__ __forceinline__ void store_vec(void* ptr, const uint4& v, bool is_streaming) {
  if (is_streaming) {
    store_vec<Cache::kStreaming>(ptr, v);
  } else {
    store_vec<Cache::kDefault>(ptr, v);
  }
}

// Brings a line into L2, the point of coherence, so it is right even before pdl_wait(): a later load sees later writes.
__device__ __forceinline__ void prefetch_l2(const void* ptr) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(ptr));
}

}  // namespace dfi
