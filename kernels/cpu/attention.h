// Causal self-attention on the CPU, the operations of kernels/ops.h over the storage type T (float,
// bf16, double). Flash attention (Dao et al., 2022; Dao, 2023): queries meet keys in blocks, the
// softmax is taken online, and nothing of T x T is ever stored; blocks above the diagonal are
// skipped. Products, softmax and statistics are in Accumulator<T>; bf16 is read once and rounded
// once, where a result is stored.
//
// Every sum has an order fixed by the shapes alone: the same bits at any number of threads.
// `workspace` (uint8) has at least the bytes that the operation's _workspace_bytes says, asked for
// at the same max_threads(); nothing else is allocated. Arguments are checked (CheckError).
#pragma once

#include <cstddef>

#include "kernels/ops.h"

namespace lathe {

template <typename T>
void attention_forward(const AttentionForward& args, const Tensor& workspace);
template <typename T>
void attention_backward(const AttentionBackward& args, const Tensor& workspace);
template <typename T>
void attention_cached(const AttentionCached& args, const Tensor& workspace);

// Only shapes and number types are read.
size_t attention_forward_workspace_bytes(const AttentionForward& args);
size_t attention_backward_workspace_bytes(const AttentionBackward& args);
size_t attention_cached_workspace_bytes(const AttentionCached& args);

}  // namespace lathe
