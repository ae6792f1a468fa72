// SPDX-License-Identifier: Apache-2.0

// Between an engine (libFuzzer, or standalone.cpp) and the targets: chooses the one that --target
// names, and holds the memory that each input takes against its bound.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "fuzz/harness.hpp"

extern "C" {
int LLVMFuzzerInitialize(int* argc, char*** argv);
int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size);

// Of AddressSanitizer's runtime; g++ 12 comes with that and without the header that says so.
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(void const volatile*, std::size_t),
                                              void (*on_free)(void const volatile*));
std::size_t __sanitizer_get_allocated_size(void const volatile* pointer);
}

namespace emprl::fuzz {
namespace {

Targets const& all_targets() {
  static Targets const all = [] {
    Targets targets;
    for (auto const part : {io_targets, text_targets, train_targets, folder_targets}) {
      for (Target const& target : part()) targets.push_back(target);
    }
    return targets;
  }();
  return all;
}

Target const* chosen = nullptr;
std::atomic<std::int64_t> live{0};
std::atomic<std::int64_t> most{0};

void on_malloc(void const volatile*, std::size_t bytes) {
  std::int64_t const now = live += static_cast<std::int64_t>(bytes);
  if (now > most) most = now;
}

void on_free(void const volatile* pointer) {
  if (pointer == nullptr) return;
  live -= static_cast<std::int64_t>(__sanitizer_get_allocated_size(pointer));
}

}  // namespace
}  // namespace emprl::fuzz

/// Chooses the target. `--target=NAME` is passed over by libFuzzer, as everything with two dashes.
int LLVMFuzzerInitialize(int* argc, char*** argv) {
  using namespace emprl::fuzz;
  constexpr std::string_view option = "--target=";
  for (int i = 1; i < *argc; ++i) {
    std::string_view const word = (*argv)[i];
    if (!word.starts_with(option)) continue;
    for (Target const& target : all_targets()) {
      if (target.name == word.substr(option.size())) chosen = &target;
    }
  }
  if (chosen == nullptr) {
    static_cast<void>(std::fprintf(stderr, "emprl_fuzz: --target=NAME must name one of:\n"));
    for (Target const& target : all_targets()) {
      static_cast<void>(std::fprintf(stderr, "  %.*s\n", static_cast<int>(target.name.size()),
                                     target.name.data()));
    }
    std::exit(2);
  }
  // What a target makes once and keeps must not count for any input.
  chosen->run({});
  __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
  return 0;
}

int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace emprl::fuzz;
  std::int64_t const before = live;
  most = before;
  chosen->run({reinterpret_cast<char const*>(data), size});
  std::size_t const allowed = chosen->fixed_memory + chosen->memory_per_byte * size;
  require(most - before <= static_cast<std::int64_t>(allowed),
          "memory is in proportion to the input");
  return 0;
}
