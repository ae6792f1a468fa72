// SPDX-License-Identifier: Apache-2.0
#pragma once

// The parts of a trainer that a case about another part needs.

#include <cstdint>
#include <span>
#include <string>

#include "emprl/rl/ppo.hpp"

namespace parts {

struct Actor {
  using Scalar = float;
  struct Context {};
  void forward(emprl::rl::TokenBatch const&, std::span<float>, std::span<float>, Context&);
  void backward(std::span<float const>, std::span<float const>, Context&);
};

struct Reference {
  void logprobs(emprl::rl::TokenBatch const&, std::span<float>);
};

struct Reward {
  void operator()(emprl::rl::EpisodeBatch const&, std::span<float>);
};

struct Draw {
  emprl::Ragged operator()(emprl::RaggedView contexts, std::uint32_t step);
};

struct Decode {
  std::string operator()(std::span<std::int32_t const>);
};

struct Descent {
  void zero_gradients();
  double step(double, double);
};

}  // namespace parts
