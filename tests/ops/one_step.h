// Every operation of a training step on one set of tensors, for tests that cover all operations:
// the same bits from run to run and for any number of threads, no allocations.
#pragma once

#include "kernels/device/arena.h"
#include "kernels/observed_ops.h"
#include "tests/ops/ops_testing.h"

namespace lathe::testing {

template <typename T>
class OneStep {
 public:
  using A = Accumulator<T>;
  static constexpr int64_t B = 3, L = 40, C = 192, V = 300, kVocab = 290, N = B * L;

  OneStep() : arena_(device(), size_t{64} << 20) {
    const auto fill = [this](Tensor& tensor, Shape shape, double scale) {
      tensor = make<T>(shape);
      const auto values = random_values<T>(shape.elements(), stream_++, scale);
      device().upload(tensor, values.data());
    };
    fill(wte_, {V, C}, 0.1), fill(wpe_, {L, C}, 0.1), fill(ln_weight_, {C}, 1);
    fill(ln_bias_, {C}, 1), fill(w1_, {C, 4 * C}, 0.1), fill(b1_, {4 * C}, 0.1);
    fill(w2_, {4 * C, C}, 0.1), fill(attention_in_, {B, L, 3 * C}, 1);
    tokens_ = make<int32_t>({B, L});
    device().upload(tokens_, random_tokens(N, 50, kVocab).data());
    for (Tensor* t : {&x_, &residual_, &normed_, &h_out_, &dx_, &d_residual_, &dnormed_})
      *t = make<T>({B, L, C});
    pre_ = make<T>({N, 4 * C}), h_ = make<T>({N, 4 * C}), dpre_ = make<T>({N, 4 * C});
    dqkv_ = make<T>({B, L, 3 * C});
    mean_ = make<A>({B, L}), rstd_ = make<A>({B, L}), losses_ = make<A>({N});
    logsumexp_ = make<A>({B, 4, L}), logits_ = make<A>({2, kVocab});
    gradients_ = make<A>({kParameters}), masters_ = make<A>({kParameters});
    m_ = make<A>({kParameters}), v_ = make<A>({kParameters}), weights_ = make<T>({kParameters});
    segment_ = make_value(OptimizerSegment{0, kParameters, 0.1f});
    inputs_ =
        make_value(StepInputs{.seed = 1, .first_sequence = 2, .step = 3, .learning_rate = 0.01f});
    results_ = make_value(StepResults());
    RecordingOps recording(ops<T>());
    run_own(recording), run_products(recording);
    workspace_ = make<uint8_t>({std::max<int64_t>(1, static_cast<int64_t>(recording.workspace()))});
  }

  // Operations whose sums do not depend on threads.
  void run_own() { run_own(ops<T>()); }
  void run_own(const Ops& t) {
    const Dropout dropout{0.2f, 1, DropoutSite::embedding, inputs()};
    t.run(BeginStep{results(), inputs()}, workspace_);
    t.run(EmbeddingForward{x_, tokens_, wte_, wpe_, dropout, 0}, workspace_);
    t.run(LayerNormForward{normed_, residual_, mean_, rstd_, x_, x_, ln_weight_, ln_bias_, dropout},
          workspace_);
    t.run(GeluForward{h_, pre_, Gelu::exact}, workspace_);
    t.run(GeluBackward{dpre_, sums({4 * C}, C), h_, pre_, Gelu::exact, false}, workspace_);
    t.run(AttentionForward{h_out_, logsumexp_, attention_in_, 4, dropout}, workspace_);
    t.run(AttentionBackward{dqkv_, sums({3 * C}, 5 * C), normed_, h_out_, logsumexp_, attention_in_,
                            4, dropout, false},
          workspace_);
    t.run(LayerNormBackward{d_residual_, dx_, gradient({C}, 0), gradient({C}, C), sums({C}, 0),
                            normed_, residual_, mean_, rstd_, ln_weight_, dropout, true, false},
          workspace_);
    t.run(EmbeddingBackward{gradient({V, C}, 2 * C), gradient({L, C}, 2 * C + V * C), dx_, tokens_,
                            dropout, true},
          workspace_);
    t.run(Logits{logits_, x_.reshaped({N, C}).rows(0, 2), wte_, kVocab}, workspace_);
    t.run(SquareSum{gradients_, results()}, workspace_);
    t.run(ClipScale{1, results()}, workspace_);
    AdamW adamw;
    adamw.masters = masters_, adamw.m = m_, adamw.v = v_, adamw.gradients = gradients_;
    if (!std::is_same_v<T, A>) adamw.weights = weights_;
    adamw.segments = segment(), adamw.segment_count = 1;
    adamw.inputs = inputs(), adamw.results = results();
    t.run(adamw, workspace_);
    t.run(Cast{weights_, masters_}, workspace_);
  }

  // Operations with matmuls.
  void run_products() { run_products(ops<T>()); }
  void run_products(const Ops& t) {
    const Tensor dw1 = gradient({C, 4 * C}, 0), db1 = gradient({4 * C}, 4 * C * C);
    t.run(LinearForward{h_, pre_, x_.reshaped({N, C}), w1_, b1_, Gelu::tanh}, workspace_);
    t.run(LinearForward{h_out_.reshaped({N, C}), {}, h_, w2_, {}, Gelu::none}, workspace_);
    t.run(LinearBackward{dpre_,
                         gradient({4 * C, C}, 5 * C * C),
                         {},
                         sums({4 * C}, 8 * C),
                         x_.reshaped({N, C}),
                         h_,
                         w2_,
                         pre_,
                         Gelu::tanh,
                         false},
          workspace_);
    t.run(LinearBackward{dx_.reshaped({N, C}),
                         dw1,
                         db1,
                         {},
                         dpre_,
                         x_.reshaped({N, C}),
                         w1_,
                         {},
                         Gelu::none,
                         true},
          workspace_);
    t.run(LinearCrossEntropy{losses_, dnormed_.reshaped({N, C}), gradient({V, C}, 10 * C * C),
                             h_out_.reshaped({N, C}), wte_, tokens_.reshaped({N}), kVocab, 0.01, 0,
                             false, results()},
          workspace_);
  }

  // Everything that the operations have written.
  std::vector<unsigned char> bytes() const {
    device().synchronize();
    std::vector<unsigned char> all;
    for (const Tensor& t :
         {x_,         residual_, normed_, h_out_, dx_,      d_residual_, dnormed_,   pre_,
          h_,         dpre_,     dqkv_,   mean_,  rstd_,    losses_,     logsumexp_, logits_,
          gradients_, masters_,  m_,      v_,     weights_, results_}) {
      all.resize(all.size() + t.bytes());
      device().download(all.data() + all.size() - t.bytes(), t);
    }
    return all;
  }

 private:
  static constexpr int64_t kParameters = 16 * C * C;
  static Device& device() { return device_of<T>(); }
  template <typename U>
  Tensor make(Shape shape) {
    return arena_.allocate(MemoryCategory::activations, dtype_of<U>, shape);
  }
  template <typename U>
  Tensor make_value(const U& value) {
    const Tensor tensor = make<uint8_t>({static_cast<int64_t>(sizeof(U))});
    device().upload(tensor, &value);
    return tensor;
  }
  OptimizerSegment* segment() const { return static_cast<OptimizerSegment*>(segment_.data); }
  StepInputs* inputs() const { return static_cast<StepInputs*>(inputs_.data); }
  StepResults* results() const { return static_cast<StepResults*>(results_.data); }
  Tensor gradient(Shape shape, int64_t offset) const {
    return gradients_.rows(offset, shape.elements()).reshaped(shape);
  }
  // After all the others.
  Tensor sums(Shape shape, int64_t offset) const { return gradient(shape, 13 * C * C + offset); }

  Arena arena_;
  uint64_t stream_ = 1;
  Tensor wte_, wpe_, ln_weight_, ln_bias_, w1_, b1_, w2_, attention_in_, tokens_;
  Tensor x_, residual_, normed_, h_out_, dx_, d_residual_, dnormed_, pre_, h_, dpre_, dqkv_;
  Tensor mean_, rstd_, losses_, logsumexp_, logits_, gradients_, masters_, m_, v_, weights_;
  Tensor workspace_;
  Tensor segment_, inputs_, results_;  // bytes: an OptimizerSegment, StepInputs, StepResults
};

}  // namespace lathe::testing
