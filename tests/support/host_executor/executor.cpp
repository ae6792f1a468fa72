// SPDX-License-Identifier: Apache-2.0
#include "support/host_executor/executor.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/rng.hpp"
#include "support/host_executor/fiber.hpp"
#include "support/host_executor/shadow.hpp"

namespace host_executor {
namespace {

using emprl::cuda::Dim3;
using emprl::cuda::host::Access;
using emprl::cuda::host::Collective;
using emprl::cuda::host::Grid;
using emprl::cuda::host::Launch;
using emprl::cuda::host::SharedArray;

constexpr int most_threads = 1024;
constexpr int most_warps = most_threads / warp_size;
/// The largest amount of shared memory that a block may have on any device of today (sm_90).
constexpr std::size_t most_shared = 227 * 1024;

#if defined(EMPRL_ASAN)
constexpr std::size_t stack_bytes = 256 * 1024;
#else
constexpr std::size_t stack_bytes = 128 * 1024;
#endif

std::string text(Site where) {
  return std::string(where.file) + ":" + std::to_string(where.line);
}

std::string text(Dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

std::int64_t volume(Dim3 d) {
  return std::int64_t{d.x} * d.y * d.z;
}

/// Thrown through the threads of a kernel that has already failed.
struct Abandoned {};

/// A shared array and the records of its elements.
struct Array : SharedArray {
  int record_bytes = 1;
  std::vector<Record> records;
  void const* key = nullptr;
  int dynamic_offset = -1;
};

/// One cp.async under way.
struct Copy {
  Array* array;
  int offset;
  int bytes;
  int group;
  PackedSite where;
  std::array<std::byte, 16> data;
};

struct Thread {
  emprl::cuda::host::Thread place;
  int warp = 0;
  int lane = 0;
  bool finished = false;
  /// It has waited for the launch in front.
  bool waited = false;
  /// Where it is suspended; null before it starts, while it runs and after it ends.
  Fiber* fiber = nullptr;
  /// What it waits for; null if nothing.
  char const* waits_for = nullptr;
  Site waits_at;
  LaneMask mask = 0;
  int group = 0;
  std::vector<Copy> copies;
};

/// The lanes of one mask that have come to a collective. Groups of a warp are told apart by their
/// lowest lane.
struct Group {
  LaneMask mask = 0;
  LaneMask arrived = 0;
  void (*apply)(void* const*, LaneMask) = nullptr;
  Site where;
};

struct Warp {
  LaneMask present = 0;
  LaneMask ready = 0;
  std::array<Group, warp_size> groups;
  std::array<void*, warp_size> brought{};
  WarpOrder order;
};

class Executor {
 public:
  static Executor& instance() {
    // Never destroyed: suspended fibers stand on its stacks until the program ends.
    static Executor& executor = *new Executor;
    return executor;
  }

  Options options;
  Counts counts;

  void run(Launch const& launch, void (*body)(void const*), void const* context) {
    if (launch_ != nullptr) throw std::logic_error("a kernel is launched while another one runs");
    launch_ = &launch;
    struct Leave {
      Executor& executor;
      ~Leave() {
        executor.launch_ = nullptr;
        executor.current_ = nullptr;
        executor.error_ = nullptr;
        executor.abandoning_ = false;
      }
    } const leave{*this};
    check_limits(launch);
    body_ = body;
    context_ = context;
    threads_ = static_cast<int>(volume(launch.block));
    warps_ = (threads_ + warp_size - 1) / warp_size;
    grid_.block_size = launch.block;
    grid_.grid_size = launch.grid;
    arrays_.clear();
    shared_used_ = (launch.shared_bytes + 15) / 16 * 16;

    std::vector<std::int64_t> order(static_cast<std::size_t>(volume(launch.grid)));
    std::iota(order.begin(), order.end(), 0);
    emprl::RandomSequence(options.seed, emprl::Stream::permute)
        .shuffle(std::span<std::int64_t>(order));
    for (std::int64_t const block : order) {
      run_block(block);
      if (error_) std::rethrow_exception(error_);
    }
  }

  [[noreturn]] void fault(Fault kind, std::string const& sentence, Site where) {
    throw KernelFault(kind, report(sentence + " [" + text(where) + "]", current_));
  }

  Thread& me() {
    if (current_ == nullptr) {
      throw std::logic_error("a function of kernels was called outside a kernel");
    }
    return *current_;
  }
  Grid const& grid() const { return grid_; }

  void sync_threads(Site where) {
    Thread& thread = me();
    if (barrier_arrived_ == 0) {
      barrier_site_ = where;
    } else if (barrier_site_.file != where.file || barrier_site_.line != where.line) {
      fault(Fault::stuck,
            "a divergent barrier: this thread comes to sync_threads here and others of its block "
            "wait at the one in " +
                text(barrier_site_),
            where);
    }
    if (++barrier_arrived_ < threads_) {
      thread.waits_for = "sync_threads";
      thread.waits_at = where;
      suspend();
      return;
    }
    barrier_arrived_ = 0;
    block_barrier_ = now_++;
    for (int w = 0; w < warps_; ++w) warp_[w].ready = warp_[w].present;
    make_unready(thread);
    ready_warps_ = static_cast<LaneMask>((std::uint64_t{1} << warps_) - 1);
    if (warp_[thread.warp].ready == 0) ready_warps_ &= ~(LaneMask{1} << thread.warp);
  }

  void collective(Collective const& what, LaneMask mask, void* brought, Site where) {
    Thread& thread = me();
    Warp& warp = warp_[thread.warp];
    LaneMask const bit = LaneMask{1} << thread.lane;
    if ((mask & bit) == 0) {
      fault(Fault::lanes,
            std::string(what.name) + " with the mask " + hexadecimal(mask) +
                ", which does not name the calling lane " + std::to_string(thread.lane),
            where);
    }
    Group& group = warp.groups[static_cast<std::size_t>(std::countr_zero(mask))];
    if (group.arrived == 0) {
      group.mask = mask;
      group.apply = what.apply;
      group.where = where;
    } else if (group.mask != mask || group.apply != what.apply || group.where.file != where.file ||
               group.where.line != where.line) {
      fault(Fault::lanes,
            std::string(what.name) + " with the mask " + hexadecimal(mask) +
                " here, and other lanes of the warp wait in " + text(group.where) +
                " with the mask " + hexadecimal(group.mask) +
                ": all lanes of a mask come to the same line with the same mask",
            where);
    }
    group.arrived |= bit;
    warp.brought[static_cast<std::size_t>(thread.lane)] = brought;
    if (group.arrived != mask) {
      thread.waits_for = what.name;
      thread.waits_at = where;
      thread.mask = mask;
      suspend();
      return;
    }
    group.arrived = 0;
    what.apply(warp.brought.data(), mask);
    if (what.orders_memory) {
      warp.order.barrier(mask, (warp.present & ~mask) == 0, now_++);
    }
    warp.ready |= mask & ~bit;
    if (warp.ready != 0) ready_warps_ |= LaneMask{1} << thread.warp;
  }

  SharedArray& static_array(void const* key, char const* name, int element_bytes, int count,
                            Site where) {
    for (Array& array : arrays_) {
      if (array.key == key) return array;
    }
    std::size_t const at = shared_used_;
    std::size_t const bytes =
        static_cast<std::size_t>(element_bytes) * static_cast<std::size_t>(count);
    shared_used_ = (at + bytes + 15) / 16 * 16;
    if (shared_used_ > most_shared) {
      fault(Fault::launch,
            "static and dynamic shared memory together take " + std::to_string(shared_used_) +
                " bytes of the " + std::to_string(most_shared) + " of a block",
            where);
    }
    std::memset(memory_.data() + at, 0xff, bytes);
    Array& array = add_array(at, element_bytes, count, name, where);
    array.key = key;
    return array;
  }

  SharedArray& dynamic_array(int offset, int element_bytes, int count, Site where) {
    int const bytes = element_bytes * count;
    for (Array& array : arrays_) {
      if (array.dynamic_offset < 0) continue;
      if (array.dynamic_offset == offset && array.bytes == bytes &&
          array.element_bytes == element_bytes) {
        return array;
      }
      if (offset < array.dynamic_offset + array.bytes && array.dynamic_offset < offset + bytes) {
        fault(Fault::bounds,
              "dynamic shared memory is laid out a second time in another way than in " +
                  text(array.declared) +
                  ": all threads take the same arrays, and a piece is used again with part() and "
                  "as()",
              where);
      }
    }
    if (static_cast<std::size_t>(offset + bytes) > launch_->shared_bytes) {
      fault(Fault::bounds,
            "the launch gave " + std::to_string(launch_->shared_bytes) +
                " bytes of dynamic shared memory, and the kernel takes " +
                std::to_string(offset + bytes),
            where);
    }
    Array& array = add_array(static_cast<std::size_t>(offset), element_bytes, count,
                             "dynamic shared memory", where);
    array.dynamic_offset = offset;
    return array;
  }

  void access(SharedArray& shared, int offset, int bytes, Access kind, Site where) {
    auto& array = static_cast<Array&>(shared);
    Thread const& thread = me();
    Observer const observer = observe(thread);
    int const begin = offset / array.record_bytes;
    int const end = (offset + bytes - 1) / array.record_bytes + 1;
    for (int i = begin; i < end; ++i) {
      Record& record = array.records[static_cast<std::size_t>(i)];
      if (record.copying != 0) under_way(array, i, record, kind, where);
      switch (kind) {
        case Access::load:
          if (record.write.time < block_start_ && options.report_unwritten) {
            fault(Fault::unwritten, name(array, i) + " is read and nobody has written it yet",
                  where);
          }
          check(observer, array, i, record.write, "wrote", "reads", where);
          observer.join(record.read, where);
          break;
        case Access::store:
          check(observer, array, i, record.write, "wrote", "writes", where);
          check(observer, array, i, record.read, "read", "writes", where);
          observer.replace(record.write, where);
          record.read.lanes = 0;
          break;
        case Access::atomic:
          if (record.write.time < block_start_ && options.report_unwritten) {
            fault(Fault::unwritten, name(array, i) + " is added to and nobody has written it yet",
                  where);
          }
          check(observer, array, i, record.read, "read", "adds to", where);
          if (record.write.atomic) {
            observer.join(record.write, where);
          } else {
            check(observer, array, i, record.write, "wrote", "adds to", where);
            observer.replace(record.write, where);
          }
          record.write.atomic = true;
          record.read.lanes = 0;
          break;
      }
    }
  }

  void wait_for_previous() { me().waited = true; }

  void copy_async(SharedArray& shared, int offset, void const* from, int bytes, int valid,
                  Site where) {
    Thread& thread = me();
    auto& array = static_cast<Array&>(shared);
    if (valid < 0 || valid > bytes) {
      fault(Fault::bounds,
            "cp.async of " + std::to_string(bytes) + " bytes with " + std::to_string(valid) +
                " valid ones",
            where);
    }
    // PTX asks for it whatever number of bytes is read.
    if (reinterpret_cast<std::uintptr_t>(from) % static_cast<unsigned>(bytes) != 0) {
      fault(Fault::alignment,
            "cp.async of " + std::to_string(bytes) +
                " bytes from an address that is no multiple of them",
            where);
    }
    access(shared, offset, bytes, Access::store, where);
    Copy copy{&array, offset, bytes, thread.group, where, {}};
    if (valid > 0) std::memcpy(copy.data.data(), from, static_cast<std::size_t>(valid));
    // Until the wait the place holds anything.
    std::memset(array.data + offset, 0xff, static_cast<std::size_t>(bytes));
    each_record(copy, [&](Record& record) {
      record.copying = static_cast<std::uint32_t>(thread.place.rank) + 1;
    });
    thread.copies.push_back(copy);
  }

  void commit_copies() { ++me().group; }

  void wait_copies(int pending) {
    Thread& thread = me();
    Observer const observer = observe(thread);
    std::size_t done = 0;
    while (done < thread.copies.size() && thread.copies[done].group < thread.group - pending) {
      Copy const& copy = thread.copies[done++];
      std::memcpy(copy.array->data + copy.offset, copy.data.data(),
                  static_cast<std::size_t>(copy.bytes));
      each_record(copy, [&](Record& record) {
        record.copying = 0;
        observer.replace(record.write, copy.where.site());
      });
    }
    thread.copies.erase(thread.copies.begin(),
                        thread.copies.begin() + static_cast<std::ptrdiff_t>(done));
  }

 private:
  Executor() : pool_(stack_bytes, [] { instance().run_thread(); }), memory_(most_shared) {}

  // ---- launches and blocks

  void check_limits(Launch const& launch) {
    auto const refuse = [&](std::string const& sentence) {
      throw KernelFault(Fault::launch, report(sentence, nullptr));
    };
    Dim3 const g = launch.grid;
    Dim3 const b = launch.block;
    if (g.x < 1 || g.y < 1 || g.z < 1 || g.y > 65535 || g.z > 65535) {
      refuse("a grid of " + text(g) + " blocks; each extent is at least 1, y and z at most 65535");
    }
    if (b.x < 1 || b.y < 1 || b.z < 1 || b.z > 64 || volume(b) > most_threads) {
      refuse("a block of " + text(b) + " threads; it has 1 to 1024 of them, 64 at most along z");
    }
    if (launch.shared_bytes > most_shared) {
      refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory; a block has " +
             std::to_string(most_shared) + " at most");
    }
  }

  void run_block(std::int64_t number) {
    Dim3 const size = grid_.grid_size;
    grid_.block = {static_cast<int>(number % size.x), static_cast<int>(number / size.x % size.y),
                   static_cast<int>(number / size.x / size.y)};
    random_block_ = static_cast<std::uint32_t>(number);
    random_draw_ = 0;
    random_used_ = 8;
    std::memset(memory_.data(), 0xff, shared_used_);
    // A time of its own before anything in the block: records of earlier blocks lie before it.
    if (now_ > 0xf0000000u) forget_times();
    block_barrier_ = now_++;
    block_start_ = now_;
    barrier_arrived_ = 0;
    unfinished_ = threads_;
    thread_.resize(std::max(thread_.size(), static_cast<std::size_t>(threads_)));
    Dim3 const block = grid_.block_size;
    for (int i = 0; i < threads_; ++i) {
      Thread& thread = thread_[static_cast<std::size_t>(i)];
      thread.place = {{i % block.x, i / block.x % block.y, i / block.x / block.y}, i};
      thread.warp = i / warp_size;
      thread.lane = i % warp_size;
      thread.finished = false;
      thread.waited = false;
      thread.fiber = nullptr;
      thread.waits_for = nullptr;
      thread.group = 0;
    }
    counts.threads += static_cast<std::uint64_t>(threads_);
    for (int w = 0; w < warps_; ++w) {
      Warp& warp = warp_[w];
      int const lanes = std::min(threads_ - w * warp_size, warp_size);
      warp.present = static_cast<LaneMask>((std::uint64_t{1} << lanes) - 1);
      warp.ready = warp.present;
      for (Group& group : warp.groups) group.arrived = 0;
      warp.order.all = block_barrier_;
      warp.order.partly = false;
    }
    ready_warps_ = static_cast<LaneMask>((std::uint64_t{1} << warps_) - 1);
    current_ = next_ready();
    ++counts.switches;
    pool_.switch_to(pool_.take());
    current_ = nullptr;
    // Copies that nobody waited for.
    for (int i = 0; i < threads_; ++i) {
      Thread& thread = thread_[static_cast<std::size_t>(i)];
      for (Copy const& copy : thread.copies) {
        each_record(copy, [](Record& record) { record.copying = 0; });
      }
      thread.copies.clear();
    }
  }

  /// The clock starts again; every record is of the past.
  void forget_times() {
    now_ = 1;
    for (Array& array : arrays_) std::fill(array.records.begin(), array.records.end(), Record{});
    for (Warp& warp : warp_storage_) warp.order = {};
  }

  // ---- threads

  /// What a fiber does: runs the current thread to its end, then goes on with another one, on this
  /// stack if that one has not started.
  void run_thread() {
    Thread* const thread = current_;
    try {
      body_(context_);
      if (launch_->overlaps && !thread->waited) {
        fault(Fault::order,
              "the launch overlaps the one in front, and this thread ends without "
              "wait_for_previous",
              Site::current());
      }
    } catch (Abandoned const&) {
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    thread->finished = true;
    --unfinished_;
    if (error_) abandoning_ = true;
    Thread* next = abandoning_ ? next_suspended() : next_ready();
    if (next == nullptr && !abandoning_ && unfinished_ > 0) {
      error_ = std::make_exception_ptr(stuck());
      abandoning_ = true;
      next = next_suspended();
    }
    if (next != nullptr && next->fiber == nullptr) {
      current_ = next;
      return;
    }
    Fiber& mine = pool_.running();
    pool_.give_back(mine);
    go_to(next);
  }

  /// Lets others run until the current thread need wait no longer.
  void suspend() {
    Thread* const thread = current_;
    Thread* next = next_ready();
    if (next == nullptr) {
      KernelFault const report = stuck();
      thread->waits_for = nullptr;
      throw report;
    }
    thread->fiber = &pool_.running();
    go_to(next);
    thread->fiber = nullptr;
    thread->waits_for = nullptr;
    if (abandoning_) throw Abandoned{};
  }

  /// Switches to a thread, or to the host if there is none.
  void go_to(Thread* next) {
    ++counts.switches;
    current_ = next;
    if (next == nullptr) {
      pool_.switch_to(pool_.host());
    } else {
      pool_.switch_to(next->fiber != nullptr ? *next->fiber : pool_.take());
    }
  }

  /// Draws a ready thread, mostly of the current warp: its stacks are in the cache.
  Thread* next_ready() {
    if (ready_warps_ == 0) return nullptr;
    unsigned const bits = random_bits();
    int w = current_ != nullptr ? current_->warp : 0;
    if (warp_[w].ready == 0 || current_ == nullptr || (bits >> 10 & 7u) == 0) {
      w = draw(ready_warps_, bits & 31u);
    }
    Warp& warp = warp_[w];
    Thread& thread =
        thread_[static_cast<std::size_t>(w * warp_size + draw(warp.ready, bits >> 5 & 31u))];
    make_unready(thread);
    return &thread;
  }

  Thread* next_suspended() {
    for (int i = 0; i < threads_; ++i) {
      Thread& thread = thread_[static_cast<std::size_t>(i)];
      if (thread.fiber != nullptr) return &thread;
    }
    return nullptr;
  }

  void make_unready(Thread const& thread) {
    Warp& warp = warp_[thread.warp];
    warp.ready &= ~(LaneMask{1} << thread.lane);
    if (warp.ready == 0) ready_warps_ &= ~(LaneMask{1} << thread.warp);
  }

  /// A set bit: the first one from bit `from` on, around the end.
  static int draw(LaneMask mask, unsigned from) {
    return static_cast<int>(
        (static_cast<unsigned>(std::countr_zero(std::rotr(mask, static_cast<int>(from)))) + from) %
        32u);
  }

  unsigned random_bits() {
    if (random_used_ == 8) {
      auto const words = emprl::philox({random_draw_++, random_block_, 0, 0},
                                       {static_cast<std::uint32_t>(options.seed),
                                        static_cast<std::uint32_t>(options.seed >> 32)});
      for (std::size_t i = 0; i < 4; ++i) {
        random_[2 * i] = words[i] & 0xffffu;
        random_[2 * i + 1] = words[i] >> 16;
      }
      random_used_ = 0;
    }
    return random_[random_used_++];
  }

  // ---- shared memory

  Array& add_array(std::size_t at, int element_bytes, int count, char const* name, Site where) {
    Array& array = arrays_.emplace_back();
    array.data = memory_.data() + at;
    array.bytes = element_bytes * count;
    array.element_bytes = element_bytes;
    array.name = name;
    array.declared = where;
    // Half of an eight-byte number is never written alone through Shared.
    array.record_bytes = element_bytes;
    array.records.resize(static_cast<std::size_t>(count));
    return array;
  }

  template <class F>
  static void each_record(Copy const& copy, F f) {
    int const size = copy.array->record_bytes;
    for (int i = copy.offset / size; i < (copy.offset + copy.bytes - 1) / size + 1; ++i) {
      f(copy.array->records[static_cast<std::size_t>(i)]);
    }
  }

  Observer observe(Thread const& thread) {
    return {block_barrier_, now_, &warp_[thread.warp].order,
            static_cast<std::uint16_t>(thread.warp), thread.lane};
  }

  void check(Observer const& observer, Array const& array, int i, Accesses const& past,
             char const* did, char const* does, Site where) {
    int const other = observer.conflict(past);
    if (other < 0) return;
    fault(Fault::race,
          "a race: thread " + std::to_string(current_->place.rank) + " " + does + " " +
              name(array, i) + ", thread " + std::to_string(other) + " " + did + " it in " +
              text(past.where.site()) + ", and no barrier lies between",
          where);
  }

  [[noreturn]] void under_way(Array const& array, int i, Record const& record, Access kind,
                              Site where) {
    fault(Fault::async_copy,
          name(array, i) + (kind == Access::load ? " is read" : " is written") +
              " while the cp.async of thread " + std::to_string(record.copying - 1) + " in " +
              text(record.write.where.site()) + " is under way: wait_copies must come before",
          where);
  }

  static std::string name(Array const& array, int i) {
    return "element " + std::to_string(i) + " of " + array.name + " (" + text(array.declared) + ")";
  }

  // ---- reports

  static std::string hexadecimal(LaneMask mask) {
    std::string digits = "0x";
    for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[mask >> shift & 15u];
    return digits;
  }

  std::string report(std::string const& sentence, Thread const* thread) const {
    std::string head = "kernel " + launch_->kernel;
    if (thread != nullptr) {
      head += ", block " + text(grid_.block) + ", thread " + text(thread->place.index);
    }
    return head + ": " + sentence;
  }

  /// "0-31, 40": ranks in ascending order.
  static std::string ranges(std::vector<int> const& ranks) {
    std::string result;
    for (std::size_t i = 0; i < ranks.size();) {
      std::size_t j = i;
      while (j + 1 < ranks.size() && ranks[j + 1] == ranks[j] + 1) ++j;
      if (!result.empty()) result += ", ";
      result += std::to_string(ranks[i]);
      if (j > i) result += "-" + std::to_string(ranks[j]);
      i = j + 1;
    }
    return result;
  }

  /// Why no thread can go on: the groups of threads, and where each waits.
  KernelFault stuck() const {
    std::map<std::string, std::vector<int>> groups;
    std::string absent;
    for (int i = 0; i < threads_; ++i) {
      Thread const& thread = thread_[static_cast<std::size_t>(i)];
      std::string what = "returned";
      if (!thread.finished) {
        what = "wait in " + std::string(thread.waits_for) + " [" + text(thread.waits_at) + "]";
        if (thread.mask != 0 && std::string_view(thread.waits_for) != "sync_threads") {
          what += " with the mask " + hexadecimal(thread.mask);
          LaneMask const missing = thread.mask & ~warp_[thread.warp].present;
          if (missing != 0 && absent.empty()) {
            absent = "; the mask " + hexadecimal(thread.mask) +
                     " names lanes that the block does not have";
          }
        }
      }
      groups[what].push_back(i);
    }
    std::string sentence = "the block is stuck, since not all threads come to the same barrier: ";
    bool first = true;
    for (auto const& [what, ranks] : groups) {
      if (!first) sentence += "; ";
      first = false;
      sentence += "threads " + ranges(ranks) + " " + what;
    }
    return KernelFault(Fault::stuck, "kernel " + launch_->kernel + ", block " + text(grid_.block) +
                                         ": " + sentence + absent);
  }

  FiberPool pool_;
  Launch const* launch_ = nullptr;
  void (*body_)(void const*) = nullptr;
  void const* context_ = nullptr;
  Grid grid_;
  int threads_ = 0;
  int warps_ = 0;
  int unfinished_ = 0;
  std::vector<Thread> thread_;
  std::array<Warp, most_warps> warp_storage_;
  Warp* const warp_ = warp_storage_.data();
  LaneMask ready_warps_ = 0;
  Thread* current_ = nullptr;
  std::exception_ptr error_;
  bool abandoning_ = false;

  int barrier_arrived_ = 0;
  Site barrier_site_;
  std::uint32_t now_ = 1;
  std::uint32_t block_barrier_ = 0;
  std::uint32_t block_start_ = 0;

  std::vector<std::byte> memory_;
  std::size_t shared_used_ = 0;
  std::deque<Array> arrays_;

  std::uint32_t random_block_ = 0;
  std::uint32_t random_draw_ = 0;
  std::size_t random_used_ = 8;
  std::array<unsigned, 8> random_{};
};

}  // namespace

Options& options() {
  return Executor::instance().options;
}

Counts counts() {
  return Executor::instance().counts;
}

}  // namespace host_executor

namespace emprl::cuda::host {

using host_executor::Executor;

void fault(Fault kind, std::string const& sentence, Site where) {
  Executor::instance().fault(kind, sentence, where);
}

Thread const& thread() {
  return Executor::instance().me().place;
}

Grid const& grid() {
  return Executor::instance().grid();
}

void sync_threads(Site where) {
  Executor::instance().sync_threads(where);
}

void wait_for_previous() {
  Executor::instance().wait_for_previous();
}

void collective(Collective const& what, LaneMask mask, void* brought, Site where) {
  Executor::instance().collective(what, mask, brought, where);
}

SharedArray& static_array(void const* key, char const* name, int element_bytes, int count,
                          Site where) {
  return Executor::instance().static_array(key, name, element_bytes, count, where);
}

SharedArray& dynamic_array(int offset, int element_bytes, int count, Site where) {
  return Executor::instance().dynamic_array(offset, element_bytes, count, where);
}

void access(SharedArray& array, int offset, int bytes, Access kind, Site where) {
  Executor::instance().access(array, offset, bytes, kind, where);
}

void copy_async(SharedArray& array, int offset, void const* from, int bytes, int valid,
                Site where) {
  Executor::instance().copy_async(array, offset, from, bytes, valid, where);
}

void commit_copies() {
  Executor::instance().commit_copies();
}

void wait_copies(int pending) {
  Executor::instance().wait_copies(pending);
}

void run(Launch const& launch, void (*body)(void const*), void const* context) {
  Executor::instance().run(launch, body, context);
}

}  // namespace emprl::cuda::host
