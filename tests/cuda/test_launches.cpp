// SPDX-License-Identifier: Apache-2.0
// How many launches T5's passes are: what products do beside multiplying needs no kernel of its
// own. A launch costs a GPU some microseconds, whatever it does.
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/cuda/graph.cuh"
#include "emprl/t5/model.hpp"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;

namespace {
namespace cuda_launches {

/// ReLU, as T5 v1.0 has it, and rows of the feed-forward layer that have a mask; all rows begin at
/// multiples of 16 bytes, as those of T5 do.
t5::Config relu_config() {
  t5::Config c = support::device_config(false);
  c.d_ff = 128;
  c.d_model = 40;
  return c;
}

/// Of cuBLASLt it is not known: it may sum parts in one launch and add them up in another, or take
/// the ReLU behind the product. How it does is the choice of its heuristic.
#if defined(__CUDACC__)
constexpr bool product_is_one_launch = false;
#else
constexpr bool product_is_one_launch = true;
#endif

/// What a pass is when it is captured; it runs once before, so that nothing is allocated.
template <class Work>
index_t launches(Cuda& dev, Work const& work) {
  work();
  return static_cast<index_t>(cuda::CudaGraph::capture(dev, work).size());
}

/// A model in the GPU's memory, its gradients, and rows of tokens for it.
template <class T>
struct Passes {
  explicit Passes(Cuda& device) : dev(device) {
    copy(dev, p.all(), std::vector<T>(static_cast<std::size_t>(p.size()), T(0.1f)));
  }

  index_t layers() const { return config.num_decoder_layers; }

  index_t of_a_decoded_token() {
    auto const& decoder = model.decoder();
    auto fixed = decoder.in_place(3, memory.view().extent(0), 4);
    decoder.start_in_place(dev, p.views(), memory.view(), context_rows.offsets, fixed);
    Tensor<index_t, 1, Cuda> const length({3});
    Tensor<T, 2, Cuda> const y({3, config.d_model});
    copy(dev, length.view(), std::vector<index_t>{1, 1, 1});
    return launches(dev, [&] {
      decoder.step_in_place(dev, p.views(), {}, fixed, length.view(), target.ids.rows(0, 3),
                            y.view());
    });
  }

  /// Encoder and decoder, forward and backward.
  index_t of_training(double dropout) {
    return launches(dev, [&] {
      ArenaScope const saved(dev.saved);
      ArenaScope const scratch(dev.scratch);
      DropoutSites sites(dropout, 1, 2);
      typename t5::Encoder<T, Cuda>::Context encoded;
      typename t5::Decoder<T, Cuda>::Context decoded;
      model.encoder().forward(dev, p.views(), source, {}, memory.view(), encoded, sites);
      auto const hidden = dev.saved.allocate<T, 2>({response_rows.tokens(), config.d_model});
      auto const dmemory = dev.saved.allocate<T, 2>(memory.view().extents());
      model.decoder().forward(dev, p.views(), target, memory.view(), source, {}, hidden, decoded,
                              sites);
      clear(dev, dmemory);
      model.decoder().backward(dev, p.views(), gradients.views(), {}, hidden, dmemory, decoded);
      model.encoder().backward(dev, p.views(), gradients.views(), {}, dmemory, encoded);
    });
  }

  Cuda& dev;
  t5::Config config = relu_config();
  t5::Model<T, Cuda> model{config};
  t5::Parameters<T, Cuda> p{dev, config};
  t5::Parameters<Accumulator<T>, Cuda> gradients{dev, config};
  Ragged context_rows = support::random_rows({5, 2, 9}, config.vocab_size, 6);
  Ragged response_rows = support::random_rows({2, 6, 3}, config.vocab_size, 7);
  t5::Tokens<Cuda> source = t5::tokens_of(dev, dev.saved, context_rows.view());
  t5::Tokens<Cuda> target = t5::tokens_of(dev, dev.saved, response_rows.view());
  Tensor<T, 2, Cuda> memory{{context_rows.tokens(), config.d_model}};
};

}  // namespace cuda_launches
}  // namespace

TEMPLATE_TEST_CASE(
    "cuda: products add residuals and take ReLU and its gradient in their own launches",
    "[cuda][t5][graph]", float, Bf16) {
  Cuda dev;
  cuda_launches::Passes<TestType> passes(dev);
  // Of a decoder's block: norm, query-key-value, attention, output; norm, query, attention, output;
  // norm, in, out. Besides, the lengths of rows, the embedding and the last norm. In 16 bits a norm
  // goes along with the product that follows, and no product is cuBLASLt's.
  constexpr bool in_16_bits = std::is_same_v<TestType, Bf16>;
  index_t const decoded = passes.of_a_decoded_token();
  if (in_16_bits || cuda_launches::product_is_one_launch) {
    CHECK(decoded == 3 + (in_16_bits ? 8 : 11) * passes.layers());
  }
  dev.products.few_rows = 0;
  index_t const by_library = passes.of_a_decoded_token();
  CHECK(by_library >= 3 + 11 * passes.layers());
  if constexpr (cuda_launches::product_is_one_launch) {
    CHECK(by_library == 3 + 11 * passes.layers());
    // It was 165. A sum and a copy for each sub-layer, and ReLU both ways, are gone: 12 launches of
    // the encoder's two blocks and 16 of the decoder's.
    CHECK(passes.of_training(0.0) <= 165 - 28);
    // What is dropped lies between: ReLU alone is taken along. It was 201; a sum forward and a copy
    // backward are gone with each of ten sub-layers.
    CHECK(passes.of_training(0.1) <= 201 - 8 - 20);
  }
}
