// A library that is opened when it is needed, and may be in a number of places.
#pragma once

#include <string>

#include "kernels/device/error.h"

namespace lathe::cuda {

// How it is called, and what is said where it is missing: "USER: NAME is not found, and PURPOSE;
// ADVICE, or set VARIABLE to the file".
struct LibraryName {
  std::string name;      // of the file
  const char* variable;  // of the environment, that names the file
  std::string title;
  const char* user;
  const char* purpose;
  const char* advice;
};

class SharedLibrary {
 public:
  // Looks for the file that the variable names; where the system looks for libraries; where the
  // toolkit and Python's packages put it. UserError where there is none. It stays loaded.
  explicit SharedLibrary(const LibraryName& name);

  // UserError where it has no such function: it is another library.
  template <typename Function>
  void find(const char* function_name, Function& function) const {
    function = reinterpret_cast<Function>(symbol(function_name));
  }

 private:
  void* symbol(const char* name) const;

  LibraryName name_;
  void* library_;
};

}  // namespace lathe::cuda
