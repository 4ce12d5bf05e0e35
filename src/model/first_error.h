// The first error of functions that a thread calls that nobody can throw to (CopyQueue::call).
#pragma once

#include <exception>
#include <mutex>

namespace lathe {

class FirstError {
 public:
  // Calls body() and keeps what it throws. After an error does nothing.
  template <typename Body>
  void attempt(const Body& body) {
    {
      const std::lock_guard lock(mutex_);
      if (error_) return;
    }
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
  }
  void rethrow() {
    const std::lock_guard lock(mutex_);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace lathe
