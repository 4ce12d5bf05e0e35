// Attention as it is written, one query at a time.
#include <cmath>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/dropout.h"
#include "kernels/cpu/vecmath.h"

namespace lathe {

namespace {

template <typename T>
struct Heads {
  using A = Accumulator<T>;
  int64_t B, L, C, H, D;
  Heads(const Tensor& qkv, int64_t n_head)
      : B(qkv.shape[0]), L(qkv.shape[1]), C(qkv.shape[2] / 3), H(n_head), D(C / n_head) {}
  int64_t at(int64_t b, int64_t t, int64_t h, int which) const {
    return (b * L + t) * 3 * C + which * C + h * D;
  }
};

template <typename T>
Accumulator<T> dot(const T* a, const T* b, int64_t n) {
  Accumulator<T> sum = 0;
  for (int64_t i = 0; i < n; ++i)
    sum += static_cast<Accumulator<T>>(a[i]) * static_cast<Accumulator<T>>(b[i]);
  return sum;
}

}  // namespace

template <typename T>
void attention_forward(const AttentionForward& args, const Tensor& workspace) {
  using A = Accumulator<T>;
  const Heads<T> s(args.qkv_bt3c, args.n_head);
  const DropoutMask mask(args.dropout);
  const T* qkv = args.qkv_bt3c.as<T>();
  A *p = static_cast<A*>(workspace.data), *keep = p + s.L, *sum = keep + s.L;
  const A scale = 1 / std::sqrt(static_cast<A>(s.D));
  for (int64_t bh = 0; bh < s.B * s.H; ++bh) {
    const int64_t b = bh / s.H, h = bh % s.H;
    for (int64_t q = 0; q < s.L; ++q) {
      A top = -INFINITY, total = 0;
      for (int64_t k = 0; k <= q; ++k) {
        p[k] = dot(qkv + s.at(b, q, h, 0), qkv + s.at(b, k, h, 1), s.D) * scale;
        top = std::max(top, p[k]);
      }
      for (int64_t k = 0; k <= q; ++k) total += p[k] = std::exp(p[k] - top);
      args.logsumexp_bht.as<A>()[bh * s.L + q] = top + std::log(total);
      std::fill_n(keep, s.L, A(1));
      if (mask) mask.scales(((mask.first_sequence() * s.H + bh) * s.L + q) * s.L, q + 1, keep);
      std::fill_n(sum, s.D, A(0));
      for (int64_t k = 0; k <= q; ++k)
        for (int64_t d = 0; d < s.D; ++d)
          sum[d] += p[k] / total * keep[k] * static_cast<A>(qkv[s.at(b, k, h, 2) + d]);
      for (int64_t d = 0; d < s.D; ++d)
        store(args.out_btc.as<T>()[(b * s.L + q) * s.C + h * s.D + d], sum[d]);
    }
  }
}

template <typename T>
void attention_backward(const AttentionBackward& args, const Tensor& workspace) {
  using A = Accumulator<T>;
  const Heads<T> s(args.qkv_bt3c, args.n_head);
  const DropoutMask mask(args.dropout);
  const T *qkv = args.qkv_bt3c.as<T>(), *dout = args.dout_btc.as<T>(), *out = args.out_btc.as<T>();
  const int64_t total = args.qkv_bt3c.elements();
  A *gradient = static_cast<A*>(workspace.data), *keep = gradient + total;
  std::fill_n(gradient, total, A(0));
  const A scale = 1 / std::sqrt(static_cast<A>(s.D));
  for (int64_t bh = 0; bh < s.B * s.H; ++bh) {
    const int64_t b = bh / s.H, h = bh % s.H;
    for (int64_t q = 0; q < s.L; ++q) {
      const int64_t o = (b * s.L + q) * s.C + h * s.D;
      const A delta = dot(dout + o, out + o, s.D);
      std::fill_n(keep, s.L, A(1));
      if (mask) mask.scales(((mask.first_sequence() * s.H + bh) * s.L + q) * s.L, q + 1, keep);
      for (int64_t k = 0; k <= q; ++k) {
        const int64_t aq = s.at(b, q, h, 0), ak = s.at(b, k, h, 1), av = s.at(b, k, h, 2);
        const A p = std::exp(dot(qkv + aq, qkv + ak, s.D) * scale -
                             args.logsumexp_bht.as<A>()[bh * s.L + q]);
        const A ds = p * (dot(dout + o, qkv + av, s.D) * keep[k] - delta) * scale;
        for (int64_t d = 0; d < s.D; ++d) {
          gradient[av + d] += p * keep[k] * static_cast<A>(dout[o + d]);
          gradient[aq + d] += ds * static_cast<A>(qkv[ak + d]);
          gradient[ak + d] += ds * static_cast<A>(qkv[aq + d]);
        }
      }
    }
  }
  for (int64_t i = 0; i < total; ++i) store(args.dqkv_bt3c.as<T>()[i], gradient[i]);
}

template <typename T>
void attention_cached(const AttentionCached& args, const Tensor& workspace) {
  using A = Accumulator<T>;
  const Heads<T> s(args.qkv_bt3c, args.n_head);
  const int64_t M = args.keys_bmc.shape[1];
  const T* qkv = args.qkv_bt3c.as<T>();
  T *keys = args.keys_bmc.as<T>(), *values = args.values_bmc.as<T>();
  A *p = static_cast<A*>(workspace.data), *sum = p + M;
  const A scale = 1 / std::sqrt(static_cast<A>(s.D));
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t t = 0; t < s.L; ++t) {
      std::copy_n(qkv + s.at(b, t, 0, 1), s.C, keys + (b * M + args.past + t) * s.C);
      std::copy_n(qkv + s.at(b, t, 0, 2), s.C, values + (b * M + args.past + t) * s.C);
    }
    for (int64_t qh = 0; qh < s.L * s.H; ++qh) {
      const int64_t q = qh / s.H, h = qh % s.H, last = args.past + q;
      A top = -INFINITY, total = 0;
      for (int64_t k = 0; k <= last; ++k) {
        p[k] = dot(qkv + s.at(b, q, h, 0), keys + (b * M + k) * s.C + h * s.D, s.D) * scale;
        top = std::max(top, p[k]);
      }
      for (int64_t k = 0; k <= last; ++k) total += p[k] = std::exp(p[k] - top);
      std::fill_n(sum, s.D, A(0));
      for (int64_t k = 0; k <= last; ++k)
        for (int64_t d = 0; d < s.D; ++d)
          sum[d] += p[k] / total * static_cast<A>(values[(b * M + k) * s.C + h * s.D + d]);
      for (int64_t d = 0; d < s.D; ++d)
        store(args.out_btc.as<T>()[(b * s.L + q) * s.C + h * s.D + d], sum[d]);
    }
  }
}

size_t attention_forward_workspace_bytes(const AttentionForward& args) {
  return static_cast<size_t>(2 * args.qkv_bt3c.shape[1] + args.qkv_bt3c.shape[2]) * 8;
}
size_t attention_backward_workspace_bytes(const AttentionBackward& args) {
  return static_cast<size_t>(args.qkv_bt3c.elements() + args.qkv_bt3c.shape[1]) * 8;
}
size_t attention_cached_workspace_bytes(const AttentionCached& args) {
  return static_cast<size_t>(args.keys_bmc.shape[1] + args.qkv_bt3c.shape[2]) * 8;
}

template void attention_forward<float>(const AttentionForward&, const Tensor&);
template void attention_forward<bf16>(const AttentionForward&, const Tensor&);
template void attention_forward<double>(const AttentionForward&, const Tensor&);
template void attention_backward<float>(const AttentionBackward&, const Tensor&);
template void attention_backward<bf16>(const AttentionBackward&, const Tensor&);
template void attention_backward<double>(const AttentionBackward&, const Tensor&);
template void attention_cached<float>(const AttentionCached&, const Tensor&);
template void attention_cached<bf16>(const AttentionCached&, const Tensor&);
template void attention_cached<double>(const AttentionCached&, const Tensor&);

}  // namespace lathe
