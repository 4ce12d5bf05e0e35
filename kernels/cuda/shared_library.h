// A library that is opened when it is needed, searched for in a number of places.
#pragma once

#include <string>

#include "kernels/device/error.h"

namespace lathe::cuda {

// A library's name and the parts of the message if it is missing: "USER: NAME is not found, and
// PURPOSE; ADVICE, or set VARIABLE to the file".
struct LibraryName {
  std::string name;      // of the file
  const char* variable;  // the environment variable that names the file
  std::string title;
  const char* user;
  const char* purpose;
  const char* advice;
};

class SharedLibrary {
 public:
  // Opens the file that the variable names. Without one, searches the system's library path, then
  // the places where the toolkit and Python's packages install it. Throws UserError if not found.
  // The library stays loaded.
  explicit SharedLibrary(const LibraryName& name);

  // Null if there is no such function: the library is older.
  template <typename Function>
  void find_if_there(const char* function_name, Function& function) const {
    function = reinterpret_cast<Function>(look_up(function_name));
  }
  // Throws UserError if there is no such function: it is another library.
  template <typename Function>
  void find(const char* function_name, Function& function) const {
    function = reinterpret_cast<Function>(symbol(function_name));
  }

 private:
  void* look_up(const char* name) const;
  void* symbol(const char* name) const;

  LibraryName name_;
  void* library_;
};

}  // namespace lathe::cuda
