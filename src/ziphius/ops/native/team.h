// Threads that go through a list of operations together: they share each one's tasks out among themselves, and
// none begins the next before all have ended this one. Who computes a task never changes its result.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace {

// Operations last microseconds, as waking a thread does; one that waits for longer lets others run, since the
// thread it waits for may be among them.
constexpr int64_t SPINS = 4096;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Team {
  public:
    // Called by one thread while the others wait elsewhere.
    void gather(int64_t threads) { threads_ = threads; }

    int64_t threads() const { return threads_; }

    // Do work(task) for each task, in any order, and wait for the others.
    template <class Work>
    void each(int64_t tasks, Work work) {
        int64_t task;
        while ((task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks) work(task);
        wait();
    }

  private:
    void wait() {
        if (threads_ == 1) return next_.store(0, std::memory_order_relaxed);
        int64_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            next_.store(0, std::memory_order_relaxed);
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int64_t spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
            spins < SPINS ? relax() : std::this_thread::yield();
    }

    int64_t threads_ = 1;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<int64_t> phase_{0};
};

}  // namespace
