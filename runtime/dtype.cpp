#include "runtime/dtype.h"

#include "runtime/error.h"

namespace longhaul::runtime {

const char* name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float64:
      return "float64";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
  }
  return "unknown";
}

DType dtype_from_name(const std::string& text) {
  for (DType dtype : {DType::float32, DType::bfloat16, DType::float64, DType::int32, DType::int64,
                      DType::uint8}) {
    if (text == name(dtype)) return dtype;
  }
  fail(ExitCode::config, "unknown dtype '", text, "'; expected float32, bfloat16 or float64");
}

}  // namespace longhaul::runtime
