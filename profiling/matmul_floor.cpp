#include "profiling/matmul_floor.h"

#include <chrono>
#include <dnnl.hpp>
#include <vector>

namespace lathe {

namespace {

using dnnl::memory;

// c[m, n] = a[m, k] b[k, n]; a transposed operand is the same memory with its strides exchanged.
struct Product {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  memory::data_type output;
};

memory::desc matrix(int64_t rows, int64_t columns, bool transposed, memory::data_type type) {
  using dims = memory::dims;
  return memory::desc(dims{rows, columns}, type, transposed ? dims{1, rows} : dims{columns, 1});
}

}  // namespace

struct MatmulFloor::Products {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  struct Call {
    dnnl::matmul primitive;
    memory a, b, c;
  };
  std::vector<Call> calls;

  // Every product has its own memory, as every layer has, so that caches hold no more than in a
  // step.
  void add(const Product& p, memory::data_type type) {
    const auto a = matrix(p.m, p.k, p.transpose_a, type), b = matrix(p.k, p.n, p.transpose_b, type);
    const auto c = matrix(p.m, p.n, false, p.output);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), engine);
    calls.push_back(
        {dnnl::matmul(description), memory(a, engine), memory(b, engine), memory(c, engine)});
    for (memory* m : {&calls.back().a, &calls.back().b}) {
      std::fill_n(static_cast<char*>(m->get_data_handle()), m->get_desc().get_size(), 0);
    }
  }
};

MatmulFloor::MatmulFloor(const ModelConfig& config, DType dtype, int64_t rows)
    : products_(std::make_unique<Products>()) {
  const auto type = dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const auto fp32 = memory::data_type::f32;
  const int64_t c = config.n_embd;
  const auto linear = [&](int64_t in, int64_t out) {
    products_->add({rows, out, in, false, false, type}, type);  // y = x W
    products_->add({rows, in, out, false, true, type}, type);   // dx = dy W^T
    products_->add({in, out, rows, true, false, fp32}, type);   // dW = x^T dy
  };
  for (int64_t l = 0; l < config.n_layer; ++l) {
    linear(c, 3 * c);
    linear(c, c);
    linear(c, 4 * c);
    linear(4 * c, c);
  }
  const int64_t v = config.padded_vocab_size();
  products_->add({rows, v, c, false, true, type}, type);   // logits = x wte^T
  products_->add({rows, c, v, false, false, type}, type);  // dx = dlogits wte
  products_->add({v, c, rows, true, false, fp32}, type);   // dwte = dlogits^T x
  run();
}

MatmulFloor::~MatmulFloor() = default;

std::string MatmulFloor::name() const {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

double MatmulFloor::run() {
  const auto start = std::chrono::steady_clock::now();
  for (auto& call : products_->calls) {
    call.primitive.execute(
        products_->stream,
        {{DNNL_ARG_SRC, call.a}, {DNNL_ARG_WEIGHTS, call.b}, {DNNL_ARG_DST, call.c}});
  }
  products_->stream.wait();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

}  // namespace lathe
