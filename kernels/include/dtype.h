// SPDX-License-Identifier: Apache-2.0
// The element types of the bandwidth-bound operators, as launchers are told them. Plain C++: bindings include it too.
#pragma once

namespace dfi {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

}  // namespace dfi
