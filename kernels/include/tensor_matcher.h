// SPDX-License-Identifier: Apache-2.0
// One sentence per tensor in a binding: device, dtype, shape with named sizes shared across the tensors of a call.
//
//   Call call;
//   Size hidden_size{"hidden_size"};
//   Rows x = call.tensor("input", input).floating().rows(hidden_size);
//   call.tensor("weight", weight).floating().shape({hidden_size}).contiguous();
//
// The first tensor that has a size, the call's dtype or its device binds it; later ones are compared. The message is
// the one Python's check_tensor gives: "weight: expected [hidden_size=8], got [7]", as a ValueError.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <sstream>
#include <string>

#include "dtype.h"

namespace dfi {

using tvm::ffi::TensorView;

// A dimension's size: named and bound by the first tensor that has it, or fixed. Zero is a value.
struct Size {
  const char* name;
  int64_t value = -1;

  bool is_bound() const { return value >= 0; }
};

// A tensor [..., size] as rows of contiguous elements; the stride is in elements.
struct Rows {
  void* ptr;
  int64_t num_rows;
  int64_t row_stride;
};

inline std::string dtype_name(DLDataType dtype) {
  std::ostringstream text;
  switch (dtype.code) {
    case kDLFloat: text << "float"; break;
    case kDLBfloat: text << "bfloat"; break;
    case kDLInt: text << "int"; break;
    case kDLUInt: text << "uint"; break;
    default: text << "type " << int{dtype.code} << " of bits "; break;
  }
  text << int{dtype.bits};
  return text.str();
}

[[noreturn]] inline void refuse(const char* name, const std::string& expected, const std::string& got) {
  TVM_FFI_THROW(ValueError) << name << ": expected " << expected << ", got " << got;
}

class Call;

class TensorMatch {
 public:
  TensorMatch(Call& call, const char* name, const TensorView& view) : call_(call), name_(name), view_(view) {}

  TensorMatch& floating();                                       // float32, bfloat16 or float16; the call's dtype
  TensorMatch& float32();
  TensorMatch& integers(bool& is_int64);                         // int32 or int64
  TensorMatch& shape(std::initializer_list<std::reference_wrapper<Size>> sizes);
  TensorMatch& contiguous();
  TensorMatch& last_dim_contiguous();
  Rows rows(Size& size);

 private:
  std::string shape_text() const;
  std::string strides_text() const;
  bool is_dtype(DLDataTypeCode code, int bits) const {
    return view_.dtype().code == code && view_.dtype().bits == bits && view_.dtype().lanes == 1;
  }

  Call& call_;
  const char* name_;
  TensorView view_;
};

// What the tensors of one call share.
class Call {
 public:
  explicit Call(DLDeviceType device_type = kDLCUDA) : device_type_(device_type) {}

  // Every tensor lives on one device of the call's type.
  TensorMatch tensor(const char* name, const TensorView& view) {
    const DLDevice device = view.device();
    if (device_ < 0 && device.device_type == device_type_) device_ = device.device_id;
    if (device.device_type != device_type_ || device.device_id != device_) {
      refuse(name, "a tensor on " + device_name(device_type_, device_), device_name(device.device_type, device.device_id));
    }
    return TensorMatch(*this, name, view);
  }

  int device() const { return device_; }
  DType dtype() const { return dtype_; }
  // The framework's current stream of the call's device.
  void* stream() const { return TVMFFIEnvGetStream(device_type_, device_); }

 private:
  friend class TensorMatch;

  static std::string device_name(DLDeviceType type, int device) {
    if (type == kDLCPU) return "cpu";
    const std::string kind = type == kDLCUDA ? "cuda" : "device type " + std::to_string(static_cast<int>(type));
    return device < 0 ? kind : kind + ":" + std::to_string(device);
  }

  DLDeviceType device_type_;
  int device_ = -1;
  bool has_dtype_ = false;
  DType dtype_ = DType::kFloat32;
  DLDataType given_ = {};
};

inline TensorMatch& TensorMatch::floating() {
  const DLDataType mine = view_.dtype();
  if (call_.has_dtype_) {
    if (!is_dtype(static_cast<DLDataTypeCode>(call_.given_.code), call_.given_.bits)) {
      refuse(name_, "dtype " + dtype_name(call_.given_), dtype_name(mine));
    }
    return *this;
  }
  const bool is_float32 = is_dtype(kDLFloat, 32), is_bfloat16 = is_dtype(kDLBfloat, 16);
  if (!is_float32 && !is_bfloat16 && !is_dtype(kDLFloat, 16)) {
    refuse(name_, "dtype float32 or bfloat16 or float16", dtype_name(mine));
  }
  call_.has_dtype_ = true;
  call_.given_ = mine;
  call_.dtype_ = is_float32 ? DType::kFloat32 : is_bfloat16 ? DType::kBFloat16 : DType::kFloat16;
  return *this;
}

inline TensorMatch& TensorMatch::float32() {
  if (!is_dtype(kDLFloat, 32)) refuse(name_, "dtype float32", dtype_name(view_.dtype()));
  return *this;
}

inline TensorMatch& TensorMatch::integers(bool& is_int64) {
  is_int64 = is_dtype(kDLInt, 64);
  if (!is_int64 && !is_dtype(kDLInt, 32)) refuse(name_, "dtype int32 or int64", dtype_name(view_.dtype()));
  return *this;
}

inline TensorMatch& TensorMatch::shape(std::initializer_list<std::reference_wrapper<Size>> sizes) {
  bool fits = static_cast<size_t>(view_.ndim()) == sizes.size();
  int dim = 0;
  for (Size& size : sizes) {
    if (!fits) break;
    if (!size.is_bound()) size.value = view_.size(dim);
    fits = size.value == view_.size(dim++);
  }
  if (fits) return *this;
  std::ostringstream wanted;
  const char* comma = "[";
  for (const Size& size : sizes) {
    wanted << comma;
    if (*size.name) wanted << size.name << (size.is_bound() ? "=" : "");
    if (size.is_bound()) wanted << size.value;
    comma = ", ";
  }
  refuse(name_, wanted.str() + "]", shape_text());
}

inline TensorMatch& TensorMatch::contiguous() {
  int64_t expected = 1;
  for (int dim = view_.ndim() - 1; dim >= 0; --dim) {
    if (view_.size(dim) == 0) return *this;
    if (view_.size(dim) != 1 && view_.stride(dim) != expected) refuse(name_, "a contiguous tensor", strides_text());
    expected *= view_.size(dim);
  }
  return *this;
}

inline TensorMatch& TensorMatch::last_dim_contiguous() {
  const int last = view_.ndim() - 1;
  if (last >= 0 && view_.size(last) > 1 && view_.stride(last) != 1) {
    refuse(name_, "the last dimension contiguous", strides_text());
  }
  return *this;
}

// The leading dimensions must fold into one with one stride; dimensions of size 1 have any stride.
inline Rows TensorMatch::rows(Size& size) {
  if (view_.ndim() < 1) refuse(name_, "[..., " + std::string(size.name) + "]", shape_text());
  const int last = view_.ndim() - 1;
  if (!size.is_bound()) size.value = view_.size(last);
  if (size.value != view_.size(last)) {
    refuse(name_, "[..., " + std::string(size.name) + "=" + std::to_string(size.value) + "]", shape_text());
  }
  last_dim_contiguous();
  Rows rows{view_.data_ptr(), 1, size.value};
  bool has_stride = false;
  for (int dim = last - 1; dim >= 0; --dim) {
    if (view_.size(dim) != 1) {
      if (has_stride && view_.stride(dim) != rows.row_stride * rows.num_rows && view_.numel() > 0) {
        refuse(name_, "leading dimensions that fold into one", strides_text());
      }
      if (!has_stride) rows.row_stride = view_.stride(dim);
      has_stride = true;
    }
    rows.num_rows *= view_.size(dim);
  }
  return rows;
}

inline std::string TensorMatch::shape_text() const {
  std::ostringstream text;
  text << "[";
  for (int dim = 0; dim < view_.ndim(); ++dim) text << (dim ? ", " : "") << view_.size(dim);
  text << "]";
  return text.str();
}

inline std::string TensorMatch::strides_text() const {
  std::ostringstream text;
  text << "strides (";
  for (int dim = 0; dim < view_.ndim(); ++dim) text << (dim ? ", " : "") << view_.stride(dim);
  text << ")";
  return text.str();
}

// Elements between the entries of a dimension, 0 where there is but one: exporters write any stride there.
inline int64_t stride_of(const TensorView& x, int dim) { return x.size(dim) > 1 ? x.stride(dim) : 0; }

inline void check_same_rows(const char* name, const Rows& rows, const char* other, const Rows& others) {
  if (rows.num_rows == others.num_rows) return;
  refuse(name, std::to_string(others.num_rows) + " rows, as " + other + " has", std::to_string(rows.num_rows));
}

// A launcher's answer: nullptr, or what CUDA said.
inline void check_launch(const char* op, const char* problem) {
  if (problem != nullptr) TVM_FFI_THROW(RuntimeError) << op << ": " << problem;
}

}  // namespace dfi
