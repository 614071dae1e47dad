// matmul on cuBLASLt. cuBLASLt's matrices are column-major, so a row-major c = a b is computed as
// c^T = b^T a^T, for which nothing is moved: row-major memory read by columns is the transpose.
//
// Which algorithm serves a shape is asked once and kept. Only algorithms that sum in fp32 and,
// where they cut the depth, add the parts in order from the workspace: reruns give the same bits.
#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <mutex>

#include "runtime/cuda_check_impl.h"
#include "runtime/ops/checks.h"
#include "runtime/ops/cublas_lt_impl.h"
#include "runtime/ops/matmul.h"
#include "runtime/ops/ops_impl.h"

namespace longhaul::runtime::ops::detail {
namespace {

void check_cublas(cublasStatus_t status, const char* call) {
  LONGHAUL_CHECK(status == CUBLAS_STATUS_SUCCESS, call,
                 " failed: ", cublas_lt().get_status_string(status));
}
#define LONGHAUL_CUBLAS_CHECK(call) check_cublas((call), #call)

cudaDataType_t cuda_type(DType dtype) { return dtype == DType::float32 ? CUDA_R_32F : CUDA_R_16BF; }

/// What cuBLASLt may assume of an address, in bytes.
std::uint32_t alignment(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  return static_cast<std::uint32_t>(
      std::min<std::uintptr_t>(256, address == 0 ? 256 : address & (~address + 1)));
}

/// An operand in cuBLASLt's words.
struct Matrix {
  const std::byte* data;
  DType dtype;
  std::int64_t rows, cols, leading;  // of the memory, by columns
  cublasOperation_t operation;
};
Matrix by_columns(const MatrixOperand& operand) {
  const ConstTensorView& view = operand.view;
  const int inner = operand.transposed ? 0 : 1;
  return {view.data(),          view.dtype(),    view.size(inner),
          view.size(1 - inner), operand.leading, operand.transposed ? CUBLAS_OP_T : CUBLAS_OP_N};
}

/// c = left right, or that and the addend, which else is c as well; by columns.
struct Problem {
  Matrix left, right, addend, c;

  using Key = std::array<std::int64_t, 16>;
  Key key(int device) const {
    return {device,
            c.rows,
            c.cols,
            left.operation == CUBLAS_OP_T ? left.rows : left.cols,
            left.leading,
            right.leading,
            addend.leading,
            c.leading,
            left.operation,
            right.operation,
            static_cast<std::int64_t>(left.dtype),
            static_cast<std::int64_t>(c.dtype),
            alignment(left.data),
            alignment(right.data),
            alignment(addend.data),
            alignment(c.data)};
  }
};

/// The problem's descriptors, which live for a call.
struct Descriptors {
  explicit Descriptors(const Problem& p) {
    LONGHAUL_CUBLAS_CHECK(cublas_lt().matmul_desc_init(&operation, sizeof(operation),
                                                       CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.left.operation);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.right.operation);
    set(left, p.left);
    set(right, p.right);
    set(addend, p.addend);
    set(c, p.c);
  }

  cublasLtMatmulDescOpaque_t operation{};
  cublasLtMatrixLayoutOpaque_t left{}, right{}, addend{}, c{};

 private:
  void set(cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    LONGHAUL_CUBLAS_CHECK(
        cublas_lt().matmul_desc_set_attribute(&operation, attribute, &value, sizeof(value)));
  }
  static void set(cublasLtMatrixLayoutOpaque_t& layout, const Matrix& matrix) {
    LONGHAUL_CUBLAS_CHECK(cublas_lt().matrix_layout_init(
        &layout, sizeof(layout), cuda_type(matrix.dtype), static_cast<std::uint64_t>(matrix.rows),
        static_cast<std::uint64_t>(matrix.cols), matrix.leading));
  }
};

struct Algorithm {
  cublasLtMatmulAlgo_t algo{};
  std::int64_t workspace_bytes = 0;
};

/// The handles of this process's devices, and the algorithms of the shapes seen so far. Ranks are
/// threads where the communicator is loopback.
class Library {
 public:
  static Library& instance() {
    static auto* library = new Library;  // the driver may be gone when statics are destroyed
    return *library;
  }

  cublasLtHandle_t handle(int device) {
    std::lock_guard lock(mutex_);
    cublasLtHandle_t& handle = handles_[device];
    if (handle == nullptr) LONGHAUL_CUBLAS_CHECK(cublas_lt().create(&handle));
    return handle;
  }

  Algorithm algorithm(const Problem& problem, Descriptors& descriptors, int device) {
    const Problem::Key key = problem.key(device);
    {
      std::lock_guard lock(mutex_);
      const auto known = algorithms_.find(key);
      if (known != algorithms_.end()) return known->second;
    }
    const Algorithm found = choose(problem, descriptors, handle(device));
    std::lock_guard lock(mutex_);
    if (algorithms_.size() >= kMostShapes) algorithms_.clear();  // the sizes of shards may vary
    algorithms_.emplace(key, found);
    return found;
  }

 private:
  static constexpr std::size_t kMostShapes = 4096;

  static Algorithm choose(const Problem& p, Descriptors& descriptors, cublasLtHandle_t handle) {
    cublasLtMatmulPreferenceOpaque_t preference{};
    LONGHAUL_CUBLAS_CHECK(cublas_lt().matmul_preference_init(&preference, sizeof(preference)));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      LONGHAUL_CUBLAS_CHECK(cublas_lt().matmul_preference_set_attribute(&preference, attribute,
                                                                        &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        static_cast<std::uint64_t>(kCudaMatmulScratchBytes));
    // Neither in place, where parts are added as they come, nor parts rounded to c's dtype.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.left.data));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.right.data));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.addend.data));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.c.data));
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    const cublasStatus_t status = cublas_lt().matmul_algo_get_heuristic(
        handle, &descriptors.operation, &descriptors.left, &descriptors.right, &descriptors.addend,
        &descriptors.c, &preference, 1, &result, &count);
    LONGHAUL_CHECK(status == CUBLAS_STATUS_SUCCESS && count > 0, "cuBLASLt ",
                   cublas_lt().get_version(), " has no algorithm for c[", p.c.cols, ",", p.c.rows,
                   "] of ", name(p.left.dtype), " into ", name(p.c.dtype), ", leading sizes ",
                   p.right.leading, ", ", p.left.leading, ", ", p.c.leading, ", alignments ",
                   alignment(p.right.data), ", ", alignment(p.left.data), ", ", alignment(p.c.data),
                   ": ", cublas_lt().get_status_string(status));
    return {result.algo, static_cast<std::int64_t>(result.workspaceSize)};
  }

  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Problem::Key, Algorithm> algorithms_;
};

/// Operands of one dtype that cuBLASLt multiplies into c's.
void multiply(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
              TensorView c, std::int64_t leading_c, const Stream& stream) {
  const cudaStream_t handle = runtime::detail::cuda_stream(stream);
  const int device = stream.device().index;
  const Matrix result{c.data(), c.dtype(), c.size(1), c.size(0), leading_c, CUBLAS_OP_N};
  const bool adds = addend.view.data() != nullptr;
  const Problem problem{by_columns(b), by_columns(a), adds ? by_columns(addend) : result, result};
  Descriptors descriptors(problem);
  const Algorithm algorithm = Library::instance().algorithm(problem, descriptors, device);
  const Buffer workspace = stream.allocate(algorithm.workspace_bytes);
  const float one = 1.0f, beta = adds ? 1.0f : 0.0f;
  LONGHAUL_CUBLAS_CHECK(cublas_lt().matmul(
      Library::instance().handle(device), &descriptors.operation, &one, problem.left.data,
      &descriptors.left, problem.right.data, &descriptors.right, &beta, problem.addend.data,
      &descriptors.addend, c.data(), &descriptors.c, &algorithm.algo, workspace.data(),
      static_cast<std::size_t>(algorithm.workspace_bytes), handle));
}

/// The operand in fp32: itself, or a copy in the same orientation that `copy` owns.
MatrixOperand widened(const MatrixOperand& operand, Tensor& copy, const Stream& stream) {
  if (operand.view.dtype() == DType::float32) return operand;
  const ConstTensorView view = operand.transposed ? ops::transposed(operand.view) : operand.view;
  copy = Tensor({view.size(0), view.size(1)}, DType::float32, stream);
  runtime::copy(view, copy, stream);
  const ConstTensorView wide = copy;
  return {operand.transposed ? ops::transposed(wide) : wide, operand.transposed,
          std::max<std::int64_t>(1, view.size(1))};
}

}  // namespace

void cuda_matmul(const MatrixOperand& a, const MatrixOperand& b, const MatrixOperand& addend,
                 TensorView c, std::int64_t leading_c, const Stream& stream) {
  // cuBLASLt multiplies equal dtypes, float32 into float32 only, and may round the product before
  // it adds it to what is bfloat16: not to a c of which matmul() promises one rounding.
  const bool both = a.view.dtype() == DType::bfloat16 && b.view.dtype() == DType::bfloat16;
  const bool adds = addend.view.data() != nullptr, onto_c = addend.view.data() == c.data();
  Tensor a_copy, b_copy;
  const MatrixOperand left = both ? a : widened(a, a_copy, stream),
                      right = both ? b : widened(b, b_copy, stream);
  if (c.dtype() == DType::float32 || (both && !onto_c))
    return multiply(left, right, addend, c, leading_c, stream);
  const Tensor wide({c.size(0), c.size(1)}, DType::float32, stream);
  if (adds) copy(addend.view, wide, stream);
  multiply(left, right, adds ? MatrixOperand{wide, false, c.size(1)} : MatrixOperand(), wide,
           c.size(1), stream);
  copy(wide, c, stream);
}

}  // namespace longhaul::runtime::ops::detail
