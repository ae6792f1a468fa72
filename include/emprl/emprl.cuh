// SPDX-License-Identifier: Apache-2.0
#pragma once

// All that runs on the GPU. Under nvcc a program includes this beside the headers of the models it
// uses; emprl.hpp, which knows Eigen and oneDNN, is not for nvcc.

#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/memory.cuh"
#include "emprl/cuda/products.cuh"
#include "emprl/gen/generate.cuh"
#include "emprl/gen/sampling.cuh"
#include "emprl/ops/attention.cuh"
#include "emprl/ops/attention_decode.cuh"
#include "emprl/ops/attention_unfused.cuh"
#include "emprl/ops/convert.cuh"
#include "emprl/ops/dropout.cuh"
#include "emprl/ops/elementwise.cuh"
#include "emprl/ops/embedding.cuh"
#include "emprl/ops/gemm.cuh"
#include "emprl/ops/head_width.cuh"
#include "emprl/ops/linear.cuh"
#include "emprl/ops/relative_bias.cuh"
#include "emprl/ops/rms_norm.cuh"
#include "emprl/ops/row_packs.cuh"
#include "emprl/ops/token_divergence.cuh"
#include "emprl/ops/token_logprob.cuh"
#include "emprl/optim/adamw.cuh"
#include "emprl/optim/gradient_norm.cuh"
#include "emprl/rl/objective.cuh"
