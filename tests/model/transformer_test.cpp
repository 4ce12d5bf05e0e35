#include "src/model/transformer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>

#include "src/io/safetensors.h"
#include "tests/located.h"
#include "tests/model/harness.h"
#include "tests/tolerance.h"

namespace lathe::testing {
namespace {

struct Golden {
  explicit Golden(const std::string& name)
      : file(std::filesystem::path(located("LATHE_GOLDEN_DIR", LATHE_GOLDEN_DIR)) /
             (name + ".safetensors")) {}

  ModelConfig config() const {
    const auto number = [&](const char* key) { return std::stoll(file.metadata().at(key)); };
    return {.n_layer = number("n_layer"),
            .n_head = number("n_head"),
            .n_embd = number("n_embd"),
            .vocab_size = number("vocab_size"),
            .seq_len = number("seq_len"),
            .bias = file.metadata().at("bias") == "True",
            .gelu = file.metadata().at("gelu") == "exact" ? Gelu::exact : Gelu::tanh};
  }
  StepShape shape(DType dtype) const {
    return {.dtype = dtype,
            .batch_size = std::stoll(file.metadata().at("batch")),
            .seq_len = std::stoll(file.metadata().at("t"))};
  }
  std::vector<double> doubles(const std::string& name) const {
    const SafetensorsEntry& entry = file.at(name);
    std::vector<double> values(entry.elements());
    if (entry.type == SafetensorsType::F64) {
      file.read(name, DType::fp64, values.data(), entry.elements());
    } else {
      std::vector<float> narrow(values.size());
      file.read_as_float(name, narrow.data(), entry.elements());
      values.assign(narrow.begin(), narrow.end());
    }
    return values;
  }
  std::vector<int32_t> integers(const std::string& name) const {
    std::vector<int32_t> values(file.at(name).elements());
    file.read(name, DType::int32, values.data(), file.at(name).elements());
    return values;
  }

  SafetensorsReader file;
};

// Loss and gradients by name.
using Results = std::map<std::string, std::vector<double>>;

Results results_of(const Golden& golden, Harness& h) {
  for (const ParameterSlot& slot : h.parameters.layout().slots) {
    const int64_t n = slot.spec.shape.elements();
    set_values(*h.device, h.masters().rows(slot.offset, n),
               golden.doubles("weight." + slot.spec.name));
  }
  h.sync_weights();
  h.set_batch(golden.integers("tokens"), golden.integers("targets"));
  Results results{{"loss", {h.forward_backward()}}};
  for (const ParameterSlot& slot : h.parameters.layout().slots) {
    const Tensor gradient =
        h.parameters.gradients().flat.rows(slot.offset, slot.spec.shape.elements());
    results["grad." + slot.spec.name] = values_of(*h.device, gradient);
  }
  return results;
}

double magnitude_of(const std::vector<double>& values) {
  double magnitude = 0;
  for (double value : values) magnitude = std::max(magnitude, std::fabs(value));
  return magnitude;
}

// PyTorch's own error of a tensor (maximum, RMS), relative to its values; the largest over all
// layers, because the largest error among the 48 sums of one LayerNorm is a matter of luck.
std::array<double, 2> plain_error(const Golden& golden, const std::string& name, DType dtype) {
  const auto of = [&](const std::string& tensor) {
    return golden.doubles("error_" + std::string(name_of(dtype)) + "." + tensor);
  };
  std::array<double, 2> largest{of(name)[0], of(name)[1]};
  const std::string layer = "grad.h.";
  if (!name.starts_with(layer)) return largest;
  const std::string rest = name.substr(name.find('.', layer.size()));
  for (int64_t l = 0; l < golden.config().n_layer; ++l) {
    const std::string other = fmt::format("{}{}{}", layer, l, rest);
    const double scale = magnitude_of(golden.doubles(name)) / magnitude_of(golden.doubles(other));
    for (size_t i = 0; i < 2; ++i) largest[i] = std::max(largest[i], scale * of(other)[i]);
  }
  return largest;
}

// AddressSanitizer's build computes sums in another order, which decides the largest error.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

// The two-times rule against PyTorch: our error may be twice PyTorch's own in the same number type.
// On another device it may be twice the larger of PyTorch's and our CPU's, which obeys the rule
// itself, because the largest error of so few sums depends on their order. `cpu` is null on the
// CPU.
void expect_within(const Golden& golden, const std::string& name, DType dtype,
                   const std::vector<double>& values, const std::vector<double>* cpu) {
  const std::vector<double> reference = golden.doubles(name);
  ASSERT_EQ(values.size(), reference.size()) << name;
  const double magnitude = magnitude_of(reference);
  double limit_max = 1e-12 * magnitude, limit_rms = limit_max;
  if (dtype != DType::fp64) {
    const std::array<double, 2> plain = plain_error(golden, name, dtype);
    const ErrorNorms ours = cpu ? error_norms<double>(*cpu, reference) : ErrorNorms{};
    const double floor =
        dtype == DType::bf16 ? ulp_at<bf16>(magnitude) : 8 * ulp_at<float>(magnitude);
    limit_max = std::max({2 * plain[0], 2 * ours.max, floor});
    limit_rms = std::max({2 * plain[1], 2 * ours.rms, floor});
  }
  const ErrorNorms error = error_norms<double>(values, reference);
  if (!kAddressSanitizer) {
    EXPECT_LE(error.max, limit_max) << name << " in " << name_of(dtype);
  }
  EXPECT_LE(error.rms, limit_rms) << name << " in " << name_of(dtype);
}

class GoldenTest : public ::testing::TestWithParam<std::tuple<const char*, DType>> {};

TEST_P(GoldenTest, LossAndGradientsAgreeWithPyTorch) {
  const auto [name, dtype] = GetParam();
  const Golden golden(name);
  Harness h(golden.config(), golden.shape(dtype));
  const Results results = results_of(golden, h);
  Results on_cpu;
  if (h.device->kind() != DeviceKind::cpu) {
    Harness cpu(golden.config(), golden.shape(dtype), make_cpu_device());
    on_cpu = results_of(golden, cpu);
  }
  for (const auto& [tensor, values] : results)
    expect_within(golden, tensor, dtype, values, on_cpu.empty() ? nullptr : &on_cpu.at(tensor));
}

INSTANTIATE_TEST_SUITE_P(PyTorch, GoldenTest,
                         ::testing::Combine(::testing::Values("bias_tanh", "nobias_exact"),
                                            ::testing::Values(DType::fp64, DType::fp32,
                                                              DType::bf16)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" +
                                  std::string(name_of(std::get<1>(info.param)));
                         });

struct Case {
  const char* name;
  ModelConfig config;
  int64_t batch_size, seq_len;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name;
}

class FiniteDifferences : public ::testing::TestWithParam<Case> {};

// Central differences of the whole model along random directions, one parameter at a time, in
// double, with a fixed dropout mask.
TEST_P(FiniteDifferences, AgreeWithBackward) {
  const Case& c = GetParam();
  Harness h(c.config, {.dtype = DType::fp64, .batch_size = c.batch_size, .seq_len = c.seq_len});
  h.random_batch(11);
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  const Tensor weights = h.parameters.weights().flat;
  std::vector<double> w = values_of(*h.device, weights);
  for (const ParameterSlot& slot :
       h.parameters.layout().slots) {  // away from the initial zeros and ones
    for (int64_t i = 0; i < slot.spec.shape.elements(); ++i)
      w[slot.offset + i] += 0.2 * normal(random);
  }
  set_values(*h.device, weights, w);
  h.forward_backward();
  const std::vector<double> gradient = values_of(*h.device, h.parameters.gradients().flat);

  for (const ParameterSlot& slot : h.parameters.layout().slots) {
    std::vector<double> direction(slot.spec.shape.elements());
    double slope = 0, scale = 0;
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] = normal(random);
      slope += direction[i] * gradient[slot.offset + i];
      scale += std::fabs(direction[i] * gradient[slot.offset + i]);
    }
    const double step = 1e-5;
    double difference = 0;
    for (double sign : {1.0, -1.0}) {
      std::vector<double> moved = w;
      for (size_t i = 0; i < direction.size(); ++i)
        moved[slot.offset + i] += sign * step * direction[i];
      set_values(*h.device, weights, moved);
      difference += sign * h.training_loss() / (2 * step);
    }
    EXPECT_NEAR(difference, slope, 1e-6 * scale + 1e-9) << slot.spec.name;
  }
}

constexpr ModelConfig small(int64_t n_head, int64_t head_size, int64_t vocab_size, int64_t seq_len,
                            bool bias, float dropout, Gelu gelu) {
  return {.n_layer = 2,
          .n_head = n_head,
          .n_embd = n_head * head_size,
          .vocab_size = vocab_size,
          .seq_len = seq_len,
          .bias = bias,
          .dropout = dropout,
          .gelu = gelu};
}
INSTANTIATE_TEST_SUITE_P(
    OddSizes, FiniteDifferences,
    ::testing::Values(Case{"t1", small(1, 16, 2, 1, true, 0, Gelu::tanh), 2, 1},
                      Case{"t2", small(3, 16, 65, 5, false, 0.3f, Gelu::exact), 3, 2},
                      Case{"t17", small(5, 16, 97, 17, true, 0.1f, Gelu::exact), 2, 17},
                      Case{"t65", small(1, 40, 65, 70, false, 0, Gelu::tanh), 1, 65},
                      Case{"heads_of_64", small(3, 64, 33, 9, true, 0.2f, Gelu::tanh), 1, 9},
                      Case{"heads_of_80", small(1, 80, 7, 17, true, 0.5f, Gelu::exact), 2, 13},
                      Case{"heads_of_128", small(1, 128, 50, 4, false, 0.1f, Gelu::tanh), 2, 4}),
    [](const auto& info) { return info.param.name; });

// Two micro-steps of half the batch equal one of the whole batch: the same masks, and the same sums
// up to rounding.
TEST(Transformer, AccumulationEqualsOneBatch) {
  const ModelConfig config = small(2, 16, 40, 9, true, 0.25f, Gelu::tanh);
  Harness whole(config, {.dtype = DType::fp64, .batch_size = 4, .seq_len = 9});
  whole.random_batch(3);
  const double loss = whole.forward_backward();

  Harness half(config, {.dtype = DType::fp64, .batch_size = 2, .seq_len = 9, .micro_steps = 2});
  half.inputs[1].first_sequence = 2;
  half.state.begin(half.model.ops(), half.inputs);
  std::vector<int32_t> tokens(36), targets(36);
  whole.device->download(tokens.data(), whole.tokens);
  whole.device->download(targets.data(), whole.targets);
  for (int64_t m = 0; m < 2; ++m) {
    half.set_batch({tokens.begin() + 18 * m, tokens.begin() + 18 * (m + 1)},
                   {targets.begin() + 18 * m, targets.begin() + 18 * (m + 1)});
    half.model.forward(half.batch(m), true);
    half.model.loss_and_backward(half.batch(m), 1.0 / 36, half.state.device_results(), m > 0);
  }
  EXPECT_NEAR(half.state.results().loss, loss, 1e-14);
  const auto a = values_of(*whole.device, whole.parameters.gradients().flat);
  const auto b = values_of(*half.device, half.parameters.gradients().flat);
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-14) << i;
}

TEST(Transformer, ThePaddedVocabularyIsNeverPredictedAndGetsNoGradient) {
  const ModelConfig config = small(2, 16, 17, 9, true, 0, Gelu::tanh);
  ASSERT_GT(config.padded_vocab_size(), config.vocab_size);
  Harness h(config, {.dtype = DType::fp32, .batch_size = 2, .seq_len = 9});
  h.random_batch(3);
  const double loss = h.forward_backward();
  const Tensor padding = h.parameters.weights().wte.rows(17, config.padded_vocab_size() - 17);
  for (double g : values_of(*h.device, h.parameters.gradients().wte.rows(17, padding.shape[0])))
    ASSERT_EQ(g, 0);
  // Padding rows that would win every softmax change nothing.
  set_values(*h.device, padding, std::vector<double>(padding.elements(), 1e3));
  EXPECT_EQ(h.forward_backward(), loss);
}

TEST(Transformer, TwoStepsAreBitwiseEqual) {
  const ModelConfig config = small(3, 40, 65, 33, false, 0.1f, Gelu::exact);
  for (DType dtype : {DType::fp32, DType::bf16}) {
    std::vector<double> first;
    for (int run = 0; run < 2; ++run) {
      Harness h(config, {.dtype = dtype, .batch_size = 3, .seq_len = 33});
      h.random_batch(3);
      h.forward_backward();
      h.optimizer.step(h.model.ops(), h.state);
      const auto values = values_of(*h.device, h.masters());
      if (run == 0) first = values;
      EXPECT_EQ(values, first) << name_of(dtype);
    }
  }
}

TEST(Transformer, ABadStepTouchesNothing) {
  const ModelConfig config = small(2, 16, 40, 9, true, 0, Gelu::tanh);
  Harness h(config, {.dtype = DType::bf16, .batch_size = 2, .seq_len = 9});
  h.random_batch(3);
  const auto masters = values_of(*h.device, h.masters());
  const auto good = values_of(*h.device, h.parameters.weights().flat);
  std::vector<double> poisoned = values_of(*h.device, h.parameters.weights().ln_f_weight);
  poisoned[3] = NAN;
  set_values(*h.device, h.parameters.weights().ln_f_weight, poisoned);
  h.forward_backward();
  h.optimizer.step(h.model.ops(), h.state);
  EXPECT_EQ(h.state.results().skip, 1);
  EXPECT_EQ(h.state.results().updates, 0);
  EXPECT_EQ(values_of(*h.device, h.masters()), masters);
  for (double m : values_of(*h.device, h.optimizer.m())) ASSERT_EQ(m, 0);
}

}  // namespace
}  // namespace lathe::testing
