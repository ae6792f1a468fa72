// SPDX-License-Identifier: Apache-2.0
#pragma once

// Fibers on pooled stacks: a stack runs one kernel thread after another and is never given back.
// Switches are announced to AddressSanitizer.

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <cstddef>
#include <deque>
#include <new>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define EMPRL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMPRL_ASAN 1
#endif
#endif
#if defined(EMPRL_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace host_executor {

/// A flow of control: one of the pool's, or the thread that launches.
struct Fiber {
  /// Set while the fiber does not run.
  boost::context::fiber suspended;
  void const* stack_bottom = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

/// The stacks, and the switching between them.
class FiberPool {
 public:
  /// @param run  what a fiber does over and over: run kernel threads until there is none left for
  ///             it, then switch to another fiber
  FiberPool(std::size_t stack_bytes, void (*run)()) : bytes_(stack_bytes), run_(run) {}

  Fiber& host() { return host_; }
  Fiber& running() { return *running_; }

  /// A fiber that waits for work.
  Fiber& take() {
    if (idle_.empty()) idle_.push_back(&make());
    Fiber& fiber = *idle_.back();
    idle_.pop_back();
    return fiber;
  }
  void give_back(Fiber& fiber) { idle_.push_back(&fiber); }

  /// Leaves the running fiber for `to`; returns when someone switches back.
  void switch_to(Fiber& to) {
    Fiber& from = *running_;
    left_ = &from;
    running_ = &to;
#if defined(EMPRL_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_bytes);
#endif
    boost::context::fiber previous = std::move(to.suspended).resume();
    arrive(from, std::move(previous));
  }

 private:
  void arrive([[maybe_unused]] Fiber& here, boost::context::fiber&& previous) {
#if defined(EMPRL_ASAN)
    void const* bottom = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(here.fake_stack, &bottom, &bytes);
    if (left_ == &host_) {
      host_.stack_bottom = bottom;
      host_.stack_bytes = bytes;
    }
#endif
    left_->suspended = std::move(previous);
  }

  Fiber& make() {
    auto const page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory = mmap(nullptr, bytes_ + page, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    // The lowest page is a guard: a stack that overflows stops the program there.
    if (mprotect(memory, page, PROT_NONE) != 0) throw std::bad_alloc();
    auto* const bottom = static_cast<std::byte*>(memory) + page;
    // Stacks that all began at the same offset in a page would share a few sets of the cache: each
    // begins an odd number of cache lines further down than the one before.
    std::size_t const stagger = fibers_.size() % 16 * 5 * 64;
    fibers_.emplace_back();
    Fiber& fiber = fibers_.back();
    fiber.stack_bottom = bottom;
    fiber.stack_bytes = bytes_;
    boost::context::stack_context stack;
    stack.sp = bottom + bytes_ - stagger;
    stack.size = bytes_ - stagger;
    fiber.suspended = boost::context::fiber(
        std::allocator_arg, boost::context::preallocated(stack.sp, stack.size, stack), KeepStack{},
        [this, &fiber](boost::context::fiber&& previous) {
          arrive(fiber, std::move(previous));
          for (;;) run_();
          return boost::context::fiber();
        });
    return fiber;
  }

  /// Boost asks this to free a stack; the pool keeps it.
  struct KeepStack {
    using traits_type = boost::context::stack_traits;
    boost::context::stack_context allocate() { throw std::bad_alloc(); }
    void deallocate(boost::context::stack_context&) noexcept {}
  };

  std::size_t bytes_;
  void (*run_)();
  std::deque<Fiber> fibers_;
  std::vector<Fiber*> idle_;
  Fiber host_;
  Fiber* running_ = &host_;
  Fiber* left_ = nullptr;
};

}  // namespace host_executor
