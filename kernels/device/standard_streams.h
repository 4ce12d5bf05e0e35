// Standard input, output and error: opened, written to, and checked for errors.
#pragma once

#include <string>
#include <string_view>

namespace lathe {

// Occupies descriptors 0, 1 and 2 if they are closed, so that a file opened later cannot become the
// target of what others print. Reading from them and writing to them still fails. Call it first.
void open_standard_streams();

// For a program's actual output: writes all of it to stdout at once, or throws CheckError.
void write_out(std::string_view text);

// write_out for text from outside: made printable if stdout is a terminal, else unchanged.
void print_out(std::string_view text);

// A line beside a program's actual output, treated as by print_out; write errors are ignored.
void note_out(std::string_view text);

// Throws CheckError if something that was written to stdout or std::cout did not get there.
void finish_out();

// One line on stderr: made printable, a few terminal lines at most, ended by a newline. Write
// errors are ignored: the exit code must suffice.
void say(std::string_view sentence) noexcept;

}  // namespace lathe
