#include "kernels/cpu/threads.h"
#include "tests/ops/one_step.h"

namespace lathe::testing {
namespace {

class Threads {
 public:
  explicit Threads(int count) : before_(cpu::max_threads()) { cpu::set_max_threads(count); }
  ~Threads() { cpu::set_max_threads(before_); }
  Threads(const Threads&) = delete;

 private:
  int before_;
};

template <typename T>
std::vector<unsigned char> result(int threads, bool products) {
  const Threads set(threads);
  OneStep<T> step;
  for (int i = 0; i < 2; ++i) {
    step.run_own();
    if (products) step.run_products();
  }
  return step.bytes();
}

template <typename T>
void compare() {
  const auto own = result<T>(1, false);
  for (int threads : {2, 3, 7})
    expect_same_bits(own, result<T>(threads, false), std::to_string(threads) + " threads");
  for (int threads : {1, 2})  // products may depend on nothing but this number
    expect_same_bits(result<T>(threads, true), result<T>(threads, true), "twice the same");
}
TEST(Threads, AnyNumberGivesTheSameBits) {
  compare<float>();
  compare<bf16>();
  compare<double>();
}

}  // namespace
}  // namespace lathe::testing
