// Matrix products by oneDNN 2.x. Primitives are created once per shape, layout and epilogue and
// write into the caller's workspace. GELU is our own pass over the finished matrix: it must read
// the rounded pre-activation and give the same bits as the other implementations.
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <tuple>

#include "kernels/cpu/matmul_backends.h"
#include "kernels/cpu/matmul_epilogue.h"
#include "kernels/cpu/threads.h"

namespace lathe::cpu {
namespace {

using Tag = dnnl::memory::data_type;
template <typename T>
constexpr Tag tag_of = dtype_of<T> == DType::bf16 ? Tag::bf16 : Tag::f32;

// The key of a primitive: types, transposes, sizes, epilogue, number of threads.
using Key = std::tuple<Tag, Tag, bool, bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                       bool, bool, int>;

template <typename T, typename TOut>
Key key_of(const MatmulArgs<T, TOut>& x) {
  return {tag_of<T>, tag_of<TOut>, x.transpose_a, x.transpose_b,     x.m,          x.n, x.k, x.lda,
          x.ldb,     x.ldc,        x.accumulate,  x.bias != nullptr, max_threads()};
}

// A primitive with memory objects whose pointers are set before each execution. The C interface
// executes from a fixed array; the C++ interface would build a hash map for each call.
class Product {
 public:
  template <typename T, typename TOut>
  Product(const dnnl::engine& engine, const MatmulArgs<T, TOut>& x) {
    using Desc = dnnl::memory::desc;
    using Dims = dnnl::memory::dims;
    const Desc a({x.m, x.k}, tag_of<T>, x.transpose_a ? Dims{1, x.lda} : Dims{x.lda, 1});
    const Desc b({x.k, x.n}, tag_of<T>, x.transpose_b ? Dims{1, x.ldb} : Dims{x.ldb, 1});
    const Desc bias = x.bias ? Desc({1, x.n}, tag_of<T>, Dims{x.n, 1}) : Desc();
    const Desc c({x.m, x.n}, tag_of<TOut>, Dims{x.ldc, 1});
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (x.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attr.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description({a, b, bias, c}, attr, engine);
    primitive_ = dnnl::matmul(description);
    scratch_bytes_ = description.scratchpad_desc().get_size();
    add(DNNL_ARG_SRC, a, engine);
    add(DNNL_ARG_WEIGHTS, b, engine);
    add(DNNL_ARG_DST, c, engine);
    add(DNNL_ARG_SCRATCHPAD, description.scratchpad_desc(), engine);
    if (x.bias) add(DNNL_ARG_BIAS, bias, engine);
  }

  size_t scratch_bytes() const { return scratch_bytes_; }

  void execute(dnnl::stream& stream, const void* a, const void* b, void* c, const void* bias,
               void* scratch) {
    const void* pointers[] = {a, b, c, scratch, bias};
    for (int i = 0; i < count_; ++i)
      memories_[i].set_data_handle(const_cast<void*>(pointers[i]), stream);
    dnnl::error::wrap_c_api(
        dnnl_primitive_execute(primitive_.get(), stream.get(), count_, arguments_),
        "could not execute a matmul");
    stream.wait();
  }

 private:
  void add(int argument, const dnnl::memory::desc& desc, const dnnl::engine& engine) {
    memories_[count_] = dnnl::memory(desc, engine, nullptr);
    arguments_[count_] = {argument, memories_[count_].get()};
    ++count_;
  }

  dnnl::matmul primitive_;
  size_t scratch_bytes_ = 0;
  dnnl::memory memories_[5];
  dnnl_exec_arg_t arguments_[5];
  int count_ = 0;
};

template <typename T>
void activate(Activation kind, const T* z, T* c, int64_t m, int64_t n, int64_t ld) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < m; ++row) activate_row(kind, z + row * ld, c + row * ld, n);
}

}  // namespace

struct OneDnnMatmul::Impl {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Product> products;

  template <typename T, typename TOut>
  Product& product(const MatmulArgs<T, TOut>& args) {
    const Key key = key_of(args);
    const auto found = products.find(key);
    if (found != products.end()) return found->second;
    return products.try_emplace(key, engine, args).first->second;
  }
};

OneDnnMatmul::OneDnnMatmul() : impl_(std::make_unique<Impl>()) {}
OneDnnMatmul::~OneDnnMatmul() = default;

std::string OneDnnMatmul::version() {
  const dnnl_version_t* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

bool OneDnnMatmul::supports_bf16() {
  const auto isa = static_cast<int>(dnnl::get_effective_cpu_isa());
  const auto wanted = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  return (isa & wanted) == wanted;
}

template <typename T, typename TOut>
size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<T, TOut>& args) {
  return impl_->product(args).scratch_bytes();
}

template <typename T, typename TOut>
void OneDnnMatmul::run(const MatmulArgs<T, TOut>& args, void* workspace) {
  TOut* c = args.c;
  if constexpr (std::is_same_v<T, TOut>)
    if (args.pre_activation) c = args.pre_activation;
  impl_->product(args).execute(impl_->stream, args.a, args.b, c, args.bias, workspace);
  if constexpr (std::is_same_v<T, TOut>)
    if (args.activation != Activation::none)
      activate(args.activation, c, args.c, args.m, args.n, args.ldc);
}

template size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<float, float>&);
template size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<bf16, bf16>&);
template size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<bf16, float>&);
template void OneDnnMatmul::run(const MatmulArgs<float, float>&, void*);
template void OneDnnMatmul::run(const MatmulArgs<bf16, bf16>&, void*);
template void OneDnnMatmul::run(const MatmulArgs<bf16, float>&, void*);

}  // namespace lathe::cpu
