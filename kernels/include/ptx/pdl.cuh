// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch: a kernel starts while its predecessor in the stream still runs.
// Source: PTX ISA, griddepcontrol. Below sm_90 the launch attribute is not set and both calls are empty.
#pragma once

namespace dfi::ptx {

// Returns once all grids this one depends on have completed and their writes are visible. Every thread that touches
// memory other kernels write (reads and stores alike) calls it first, and every block calls it: a grid that ended
// without waiting would count as complete while its predecessor still runs.
__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next grid start once every block of this one has called this or ended. It says nothing about memory: the
// next grid's pdl_wait() still waits for the end of this grid.
__device__ __forceinline__ void pdl_launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace dfi::ptx
